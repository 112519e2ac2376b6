"""PyTorch on the shapes that the GPU check measures: compiled, a static cache, CUDA graphs; random bf16 weights.

Prints milliseconds of a decode step at each batch and of a prompt's prefill, medians of five, for comparison with
`cuda::measure::speeds` on the same device.
"""

import statistics
import time

import torch
import torch.nn.functional as F

SHAPES = {
    "1B shape": dict(hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocab=128_256),
    "8B shape": dict(hidden=4096, layers=36, heads=32, kv_heads=8, head_dim=128, ffn=12_288, vocab=151_936),
}
CONTEXT = 1024
ROOM = CONTEXT + 128


class Model(torch.nn.Module):
    """A Llama block stack over a cache of fixed size."""

    def __init__(self, hidden, layers, heads, kv_heads, head_dim, ffn, vocab):
        super().__init__()
        make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / shape[-1] ** 0.5
        self.shape = (heads, kv_heads, head_dim)
        self.embed, self.head = make(vocab, hidden), make(vocab, hidden)
        self.layers = [
            dict(
                qkv=make((heads + 2 * kv_heads) * head_dim, hidden),
                o=make(hidden, heads * head_dim),
                gate_up=make(2 * ffn, hidden),
                down=make(hidden, ffn),
            )
            for _ in range(layers)
        ]
        self.norm = torch.ones(hidden, device="cuda", dtype=torch.bfloat16)
        steps = torch.arange(0, head_dim, 2, device="cuda").float() / head_dim
        angles = torch.outer(torch.arange(16_384, device="cuda").float(), 500_000.0**-steps)
        self.cos, self.sin = angles.cos(), angles.sin()

    def rope(self, x, position):
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]
        low, high = x.float().chunk(2, -1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), -1).to(x.dtype)

    def forward(self, tokens, position, caches, mask):
        heads, kv_heads, head_dim = self.shape
        batch, length = tokens.shape
        x = F.embedding(tokens, self.embed)
        for layer, (keys, values) in zip(self.layers, caches):
            a = F.rms_norm(x, (x.shape[-1],), self.norm)
            q, k, v = (a @ layer["qkv"].T).split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], -1)
            q = self.rope(q.view(batch, length, heads, head_dim), position).transpose(1, 2)
            k = self.rope(k.view(batch, length, kv_heads, head_dim), position).transpose(1, 2)
            v = v.view(batch, length, kv_heads, head_dim).transpose(1, 2)
            keys.index_copy_(2, position, k)
            values.index_copy_(2, position, v)
            if mask is None:
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            else:
                out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
            x = x + out.transpose(1, 2).reshape(batch, length, -1) @ layer["o"].T
            gate, up = (F.rms_norm(x, (x.shape[-1],), self.norm) @ layer["gate_up"].T).chunk(2, -1)
            x = x + (F.silu(gate) * up) @ layer["down"].T
        return (F.rms_norm(x[:, -1], (x.shape[-1],), self.norm) @ self.head.T).argmax(-1)


def timed(work, times):
    """Median seconds of one of `times` runs, after warming up."""
    for _ in range(3):
        work()
    took = []
    for _ in range(5):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(times):
            work()
        torch.cuda.synchronize()
        took.append((time.perf_counter() - begun) / times)
    return statistics.median(took)


@torch.inference_mode()
def main():
    """Measures every shape."""
    for name, shape in SHAPES.items():
        model = Model(**shape)
        compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        for batch in (1, 8, 32, 128):
            room = lambda: torch.zeros(
                batch, shape["kv_heads"], ROOM, shape["head_dim"], device="cuda", dtype=torch.bfloat16
            )
            caches = [(room(), room()) for _ in range(shape["layers"])]
            tokens = torch.ones(batch, 1, device="cuda", dtype=torch.long)
            position = torch.tensor([CONTEXT], device="cuda")
            mask = (torch.arange(ROOM, device="cuda") <= CONTEXT).view(1, 1, 1, ROOM)
            took = timed(lambda: compiled(tokens, position, caches, mask), 32)
            print(f"{name}: decode, {batch} sequences of {CONTEXT}: {took * 1e3:.3f} ms", flush=True)
            del caches
        for length in (512, 2048, 8192):
            caches = [
                tuple(
                    torch.zeros(1, shape["kv_heads"], length, shape["head_dim"], device="cuda", dtype=torch.bfloat16)
                    for _ in range(2)
                )
                for _ in range(shape["layers"])
            ]
            tokens = torch.ones(1, length, device="cuda", dtype=torch.long)
            position = torch.arange(length, device="cuda")
            took = timed(lambda: model(tokens, position, caches, None), 2)
            print(f"{name}: prefill, {length} tokens: {took * 1e3:.2f} ms", flush=True)
            del caches
        del model, compiled
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
