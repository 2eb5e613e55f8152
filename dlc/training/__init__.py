"""Training: a step that is compiled whole, and the loop around it.

step  forward, backward and update in one native call
"""
