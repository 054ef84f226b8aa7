"""What a random call is made of: sizes, values, types, layouts, wrong arguments."""

import math
import random

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SPECIAL = (math.nan, math.inf, -math.inf)
# Values that branches are about: zeros of both signs, a subnormal, saturation.
EDGES = (0.0, -0.0, 1e-40, 1.0, -1.0, 20.0, -20.0)
TILE = 2048


class Draw:
    """The random choices of one call.

    Args:
        seed, number: which call.
    """

    def __init__(self, seed: int, number: int):
        self.random = random.Random(f"{seed} {number}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(63))
        self.dtype = self.random.choice(DTYPES)
        self.with_edges = self.random.random() < 0.3
        self.with_special = self.random.random() < 0.15

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def batch(self, most: int = 5) -> tuple[int, ...]:
        """Leading dimensions: none to three, an empty one now and then."""
        sizes = [self.random.randint(1, most) for _ in range(self.random.choice((0, 1, 1, 2, 3)))]
        if sizes and self.chance(0.05):
            sizes[self.random.randrange(len(sizes))] = 0
        return tuple(sizes)

    def columns(self) -> int:
        """0 to several tiles, most of them short, many a power of two or beside one."""
        kind = self.random.random()
        if kind < 0.03:
            return 0
        if kind < 0.6:
            return self.random.randint(1, 40)
        if kind < 0.985:
            return max(1, 2 ** self.random.randint(0, 7) + self.random.randint(-1, 1))
        return self.random.choice((1, 2, 3)) * TILE + self.random.randint(-1, 1)

    def values(self, shape, scale: float = 1.0, most: float = math.inf, special=True) -> Tensor:
        """Normal values of this scale in float64, within ±most; some edges, some not finite."""
        x = torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64) * scale
        count = x.numel()
        if count and self.with_edges:
            for _ in range(self.random.randint(0, 4)):
                x.view(-1)[self.random.randrange(count)] = self.random.choice(EDGES)
        x.clamp_(-most, most)
        if count and special and self.with_special and self.chance(0.4):
            x.view(-1)[self.random.randrange(count)] = self.random.choice(SPECIAL)
        return x

    def tensor(self, shape, scale: float = 1.0, most: float = math.inf, special=True) -> Tensor:
        """`values` in the type of the call, in some layout."""
        return self.laid_out(self.values(shape, scale, most, special).to(self.dtype))

    def laid_out(self, x: Tensor) -> Tensor:
        """The same values elsewhere: at an odd offset, as a slice, transposed, apart, expanded."""
        layout = self.random.randrange(9)
        if layout == 1:
            return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
        if layout == 2 and x.dim():
            before, after = self.random.randint(0, 5), self.random.randint(1, 5)
            wide = x.new_empty((*x.shape[:-1], before + x.shape[-1] + after))
            return wide[..., before:-after].copy_(x)
        if layout == 3 and x.dim() > 1:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == 4:
            return x.new_empty((*x.shape, 2))[..., 0].copy_(x)
        if layout == 5 and x.dim() and x.numel():
            dim = self.random.randrange(x.dim())
            return x.narrow(dim, 0, 1).expand(x.shape)
        return x

    def changed(self, x):
        """Something else in the place of an argument."""
        if isinstance(x, list):
            if not x:
                return [torch.zeros(0, dtype=self.dtype)]
            i = self.random.randrange(len(x))
            return self.random.choice(
                (x[:-1], [*x, x[-1]], [], [*x[:i], self.changed(x[i]), *x[i + 1 :]])
            )
        if isinstance(x, str):
            return self.random.choice(("", "Tanh", "none", "exp", "relu"))
        if isinstance(x, bool):
            return not x
        if isinstance(x, float):
            return self.random.choice((0.0, -0.5, math.nan))
        if isinstance(x, int):
            return self.random.choice((0, -1, 2**35))
        if x is None:
            return torch.zeros(self.random.randint(0, 3), dtype=self.dtype)
        if x.dtype == torch.int32 and self.chance(0.5):
            return self.random.choice((x - 1, x + 1, x.flip(0), torch.full_like(x, 2**31 - 1)))
        ways = [lambda: x[None], lambda: x.flatten(), lambda: x.sum(), lambda: x.int()]
        ways += [lambda: x.bool(), lambda: x.double(), lambda: x.half(), lambda: x.to("meta")]
        ways += [lambda: torch.zeros(0, dtype=x.dtype)]
        if x.dim():
            ways += [lambda: x.repeat_interleave(2, -1)]
            ways += [lambda: x[..., :-1], lambda: x[..., :1], lambda: x[:1], lambda: x[:0]]
            ways += [lambda: torch.cat([x, x]), lambda: x.mT if x.dim() > 1 else x[:, None]]
        return self.random.choice(ways)()
