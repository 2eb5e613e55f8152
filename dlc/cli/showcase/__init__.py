"""The demo: networks that learn to read handwritten digits, and what can be told about it.

In the order in which the demo goes:

contest   k-NN, SVM, MLP and LeNet-5 on the same splits of the digits
beside    the same training and the same calls in PyTorch
in_c      the trained network as a C library, and a C program that reads digits with it
zoo       models of the zoo compiled, drawn, timed and compared: `dlc demo resnet18`

page      all of it as one HTML page: no script, nothing from anywhere else
figures   the page's drawings of digits, filters, confusions
charts    curves, bars and dots as SVG
style     the page's style sheet
"""
