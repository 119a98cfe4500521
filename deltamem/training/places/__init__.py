"""Training on places: where all corrections go to the last layer, nothing that is told or asked moves a hidden state.

Every hidden state before that layer's output is then the frozen backbone's, whatever the memory holds, so what a token
writes, what it reads with and what it is to say are worked out once for each place in a text and put together in any
way: a step needs no call of the backbone, only its last MLP, its last norm and its output layer.
"""
