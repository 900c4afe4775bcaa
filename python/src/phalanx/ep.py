"""Expert parallelism: tokens to the ranks that have their experts, and back."""

from phalanx.buffer import Buffer, Handle
from phalanx.config import Config
from phalanx.elastic import ElasticBuffer, EPHandle
from phalanx.events import EventHandle, EventOverlap

__all__ = ["Buffer", "Config", "EPHandle", "ElasticBuffer", "EventHandle", "EventOverlap", "Handle"]
