"""Phalanx: expert parallelism on CPUs, with the interfaces of DeepEP and EPLB.

`phalanx.ep` has `Buffer` and `ElasticBuffer`, `phalanx.eplb` has `rebalance_experts`, and `import
phalanx.deep_ep as deep_ep` stands in for DeepEP itself. Ranks are threads (`run_threads`), processes that a
launcher has started (`init`), or those of a `torch.distributed` group, which `ep.Buffer` takes as it is.
"""

from phalanx import ep, eplb
from phalanx.errors import ArgumentError, BrokenPromise, CommError, Error, Unsupported
from phalanx.group import Group, init, run_threads

__all__ = ["ArgumentError", "BrokenPromise", "CommError", "Error", "Group", "Unsupported", "ep", "eplb",
           "init", "run_threads"]
__version__ = "0.1.0"
