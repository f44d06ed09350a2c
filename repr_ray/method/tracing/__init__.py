"""Where the output of every filter goes: the network is run on tensors without data, with a label on each element.

An element labelled with a filter is exactly zero whenever that filter is dropped. Operations that move elements are
carried out on the labels themselves (`moves`); every other operation has a rule that states for which zero
inputs its output is zero (`rules`). `follow` is the entry point; what it finds is a `Trace`.
"""
