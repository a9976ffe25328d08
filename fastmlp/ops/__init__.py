"""The compiled operators ``torch.ops.fastmlp.*``, one file each.

In each file, in this order: the operator's check, its wrapper, its fake kernel (shapes for
``torch.compile``), its gradient and, from these, its :class:`~fastmlp.ops._register.Operator`; and
the same in plain PyTorch (``<op>_ref``), the truth that the compiled kernel is tested against.
Backward kernels are operators too, and their own gradients (double backward) are compositions of
torch operators, so every order of derivative exists. :mod:`fastmlp.nn.functional` is the friendlier
door: it checks first and can run without a compiler.
"""
