"""Networks with adaptive inference graphs from pretrained ResNets.

A small gate before each residual block decides, image by image, whether the block runs
(A. Veit and S. Belongie, ECCV 2018).

Example:
    >>> import aigtool
    >>> network = aigtool.convert(aigtool.create_network("cifar_resnet20"))
    >>> flops = aigtool.count_flops(network, (3, 32, 32))
    >>> len(flops.blocks)
    9
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
