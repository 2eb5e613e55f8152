"""Training: a step that is compiled whole, and the loop around it.

step       forward, backward and update in one native call
judge      figures and outputs of a model on batches
metrics    what is told of a model beside its loss
diagnosis  where a loss that is not finite comes from
history    what a run was, as a table and as curves
trainer    epochs of steps, validation, checkpoints
"""
