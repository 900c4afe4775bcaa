"""Stands in for DeepEP: `import phalanx.deep_ep as deep_ep`."""

from phalanx.ep import Buffer, Config, ElasticBuffer, EPHandle, EventHandle, EventOverlap

topk_idx_t = "int64"  # overwritten below where PyTorch is there, as DeepEP's is one of its dtypes

try:
    from torch import int64 as topk_idx_t  # noqa: F811
except ImportError:
    pass

__all__ = ["Buffer", "Config", "EPHandle", "ElasticBuffer", "EventHandle", "EventOverlap", "topk_idx_t"]
