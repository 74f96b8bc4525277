"""Experts on a GPU: all that a layer's tokens have chosen, in two products.

Called one by one, ten experts are thirty products, each over before the CPU has asked for the next; and to know which
to call, the CPU has to wait for the router. PyTorch's grouped_mm multiplies the rows of each expert with that expert's
matrix, all in one, and where each one's rows end is a tensor on the GPU. For it a layer's matrices are stacked. They
stay the model's parameters, as views of the stack, under the same names.

For inference: while gradients are recorded, each expert is called by itself, and so it is from the moment on in which
an expert, a projection or a parameter is replaced (by an adapter, say) or moved.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as registration

DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # those of grouped_mm
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def stack(model: nn.Module, kind: type):
    """Has all Experts (`kind`) of a model compute by `Grouped`, if their matrices and this PyTorch allow it."""
    for experts in model.modules():
        if isinstance(experts, kind) and can_be_stacked(experts):
            experts.grouped = Grouped(experts)
            torch.cuda.empty_cache()  # of the single matrices: the next layer's stack is a piece of its own


def can_be_stacked(experts: nn.ModuleList) -> bool:
    """Whether the experts' projections are plain matrices that grouped_mm takes: rows of a multiple of 16 bytes."""
    projections = [expert._modules[name] for expert in experts for name in PROJECTIONS]
    plain = all(isinstance(projection, nn.Linear) and projection.bias is None for projection in projections)
    if not (plain and projections and hasattr(F, "grouped_mm")):
        return False
    first = experts[0].gate_proj.weight
    same = all(projection.weight.dtype == first.dtype for projection in projections)
    return same and first.dtype in DTYPES and all(n * first.dtype.itemsize % 16 == 0 for n in first.shape)


class Grouped:
    """A layer's stacked experts, E of inner width I: gate_up (E, 2 I, D), gate before up, and down (E, D, I)."""

    @torch.no_grad()
    def __init__(self, experts: nn.ModuleList):
        self.experts = experts
        width, D = experts[0].gate_proj.weight.shape
        new = experts[0].gate_proj.weight.new_empty
        self.gate_up = new(len(experts), 2 * width, D)
        self.down = new(len(experts), D, width)
        self.numbers = torch.arange(len(experts), device=self.down.device)
        for expert, gate_up, down in zip(experts, self.gate_up, self.down):
            for name, place in zip(PROJECTIONS, (gate_up[:width], gate_up[width:], down)):
                p = expert._modules[name].weight
                place.copy_(p)
                torch.utils.swap_tensors(p, nn.Parameter(place, p.requires_grad))  # frees what p had
        for part in experts.modules():
            part.__dict__["stacked_by"] = self
        experts._apply = self.apply

    def fits(self, x: Tensor) -> bool:
        """Whether to use it for x: not for gradients, nor for another dtype, as under autocast."""
        if torch.is_grad_enabled() or x.dtype != self.down.dtype:
            return False
        if not torch.compiler.is_compiling() and not self.is_current():
            self.undo()
            return False
        return True

    def is_current(self) -> bool:
        """Whether the parameters are still the stack's views, by the first and the last."""
        pairs = (self.experts[0].gate_proj.weight, self.gate_up), (self.experts[-1].down_proj.weight, self.down[-1])
        return all(p.data_ptr() == view.data_ptr() for p, view in pairs)

    def __call__(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """As `Experts.forward`: x (tokens, D), weights and experts (tokens, k) -> (tokens, D). Numbers from E on are
        experts that others compute: they add nothing.
        """
        chosen, order = experts.flatten().sort(stable=True)  # all (token, choice) pairs, sorted by expert
        ends = torch.searchsorted(chosen, self.numbers, right=True, out_int32=True)  # where each expert's rows end
        rows = x.index_select(0, order // experts.shape[1])
        gate, up = F.grouped_mm(rows, self.gate_up.mT, offs=ends).chunk(2, dim=-1)
        outputs = F.grouped_mm(F.silu(gate) * up, self.down.mT, offs=ends)
        others = chosen == len(self.down)  # after the last end, grouped_mm writes nothing
        outputs = outputs.masked_fill(others[:, None], 0)
        place = order.argsort().view_as(experts)
        return F.embedding_bag(place, outputs, per_sample_weights=weights.to(outputs.dtype), mode="sum")

    def apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """Stands for the experts' `_apply`, by which .to() and the like move and cast: they leave the stack."""
        self.undo()
        return self.experts._apply(fn, recurse)

    def undo(self):
        """From now on, each expert is called by itself."""
        self.experts.grouped = None
        self.experts.__dict__.pop("_apply", None)
        for part in self.experts.modules():
            part.__dict__.pop("stacked_by", None)


def undo(part: nn.Module, name: str, new: Any):
    """Called by PyTorch whenever any module gets a new module or parameter."""
    if "stacked_by" in part.__dict__:
        part.__dict__["stacked_by"].undo()


registration.register_module_module_registration_hook(undo)
registration.register_module_parameter_registration_hook(undo)
