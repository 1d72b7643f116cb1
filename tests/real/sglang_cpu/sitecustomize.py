"""Run by every Python that has this directory on PYTHONPATH (tests only).

PyPI's torchvision is built for CUDA torch; beside a CPU-only torch its C extension
does not load and `import torchvision` fails because two operators that it annotates
are undefined.  Declare them just before torchvision is first imported.  (Leave this out
where torchvision's own extension loads: the operators would be declared twice.)
"""

import importlib.abc
import sys


class _DeclareTorchvisionOps(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.lib = sys.modules[__name__].lib = torch.library.Library("torchvision", "DEF")
            for op in ("nms", "qnms"):
                self.lib.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _DeclareTorchvisionOps())
