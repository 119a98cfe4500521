"""Training on hidden states of the frozen backbone that are worked out once.

Histories are put together from turns that were read one at a time by the frozen backbone, and written from its hidden
states; questions were read by it as well, so that a step runs the backbone for the answers alone. A step costs a
fraction of one through the whole, and histories of many facts cost no more than those of one. What it leaves out is
that in a chat the reads bend the hidden states of what is written and asked; the read gate keeps that small, and
steps through the whole come after.
"""
