"""Stands in for DeepEP: `import phalanx.deep_ep as deep_ep`."""

from typing import Any

from phalanx.ep import Buffer, Config, ElasticBuffer, EPHandle, EventHandle, EventOverlap

topk_idx_t: Any = "int64"  # overwritten below where PyTorch is there, as DeepEP's is one of its dtypes

try:
    import torch

    topk_idx_t = torch.int64
except ImportError:
    pass

__all__ = ["Buffer", "Config", "EPHandle", "ElasticBuffer", "EventHandle", "EventOverlap", "topk_idx_t"]
