"""Training: a step that is compiled whole, and the loop around it.

checks     what is refused before anything is trained
step       forward, backward and update in one native call
judge      figures and outputs of a model on batches
metrics    what is told of a model beside its loss
diagnosis  where a loss that is not finite comes from
history    what a run was, as a table and as curves
callbacks  who hears of steps and epochs
keeper     when checkpoints are due, and where they may go
trainer    epochs of steps, validation, checkpoints
"""
