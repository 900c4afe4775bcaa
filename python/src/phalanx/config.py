"""DeepEP's tuning of its kernels."""

from __future__ import annotations

from phalanx.arrays import expect


class Config:
    """How many SMs and how large chunks DeepEP's kernels use. On CPUs it is checked and changes nothing:
    rows are written to their place, and no memory is staged."""

    def __init__(self, num_sms: int = 20, num_max_nvl_chunked_send_tokens: int = 6,
                 num_max_nvl_chunked_recv_tokens: int = 256, num_max_rdma_chunked_send_tokens: int = 6,
                 num_max_rdma_chunked_recv_tokens: int = 256) -> None:
        expect(num_sms >= 0, f"num_sms is {num_sms}; it must be 0 or more")
        chunks = {"nvl": (num_max_nvl_chunked_send_tokens, num_max_nvl_chunked_recv_tokens),
                  "rdma": (num_max_rdma_chunked_send_tokens, num_max_rdma_chunked_recv_tokens)}
        for kind, (send, recv) in chunks.items():
            expect(0 < send < recv, f"num_max_{kind}_chunked_send_tokens is {send}; it must be above 0 and "
                   f"below num_max_{kind}_chunked_recv_tokens, {recv}")
        self.num_sms = num_sms
        self.num_max_nvl_chunked_send_tokens = num_max_nvl_chunked_send_tokens
        self.num_max_nvl_chunked_recv_tokens = num_max_nvl_chunked_recv_tokens
        self.num_max_rdma_chunked_send_tokens = num_max_rdma_chunked_send_tokens
        self.num_max_rdma_chunked_recv_tokens = num_max_rdma_chunked_recv_tokens

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """Bytes of num_nvl_bytes that a Buffer needs: 0 on CPUs."""
        del hidden_bytes, num_ranks
        return 0

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """Bytes of num_rdma_bytes that a Buffer needs: 0 on CPUs."""
        del hidden_bytes, num_ranks
        return 0
