"""A backbone folder in anybody's MMSegmentation or MMDetection config: `custom_imports = dict(imports=["sohes.mm"])`.

Importing this package registers `TimmViT`; mmengine is all it needs. The one package whose `__init__` is more than a
docstring, since a config imports it by name.
"""

from sohes.mm.backbone import TimmViT

__all__ = ["TimmViT"]
