"""dlc.data: data sets, splits, batches and augmentations, in the order in which data goes.

chance       random numbers by seed, epoch and sample
dataset      samples, taken a batch at a time: arrays, subsets, transforms
idx          mnist, fashion_mnist;  scans: digits;  folder: images
splits       parts for training and test
transforms   what a transform is; those without chance: ToFloat, Normalize
augment      flip, shift, crop and pad, contrast, noise;  warp: rotate, scale, affine, elastic ...
ahead        work done in the background
loader       batches, epoch after epoch
"""

from dlc.frontend.absent import explained
from dlc.frontend.data.augment import Augmentation as Augmentation
from dlc.frontend.data.augment import Contrast as Contrast
from dlc.frontend.data.augment import Crop as Crop
from dlc.frontend.data.augment import Flip as Flip
from dlc.frontend.data.augment import Noise as Noise
from dlc.frontend.data.augment import Pad as Pad
from dlc.frontend.data.augment import Shift as Shift
from dlc.frontend.data.chance import Chance as Chance
from dlc.frontend.data.chance import Draws as Draws
from dlc.frontend.data.dataset import ArrayDataset as ArrayDataset
from dlc.frontend.data.dataset import Dataset as Dataset
from dlc.frontend.data.dataset import as_dataset as as_dataset
from dlc.frontend.data.folder import ImageFolder as ImageFolder
from dlc.frontend.data.folder import images as images
from dlc.frontend.data.idx import fashion_mnist as fashion_mnist
from dlc.frontend.data.idx import mnist as mnist
from dlc.frontend.data.idx import read_idx as read_idx
from dlc.frontend.data.loader import Batches as Batches
from dlc.frontend.data.loader import batches as batches
from dlc.frontend.data.scans import digits as digits
from dlc.frontend.data.splits import split as split
from dlc.frontend.data.transforms import Compose as Compose
from dlc.frontend.data.transforms import Normalize as Normalize
from dlc.frontend.data.transforms import ToFloat as ToFloat
from dlc.frontend.data.transforms import Transform as Transform
from dlc.frontend.data.warp import Affine as Affine
from dlc.frontend.data.warp import Elastic as Elastic
from dlc.frontend.data.warp import Perspective as Perspective
from dlc.frontend.data.warp import Rotate as Rotate
from dlc.frontend.data.warp import Scale as Scale
from dlc.frontend.data.warp import Warp as Warp

#: What PyTorch's users look for.
_INSTEAD = {
    "DataLoader": "dlc.data.batches(data, batch_size, shuffle=True)",
    "TensorDataset": "dlc.data.ArrayDataset, or a tuple of arrays",
    "random_split": "dlc.data.split",
    "Subset": "data.subset(indices)",
}

__getattr__ = explained("dlc.data", [name for name in globals() if name[0] != "_"], _INSTEAD)
