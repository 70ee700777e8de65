"""Test `finetune.models.partition`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.models import partition
from finetune.models.backbone import Backbone
from finetune.models.specs import FAMILIES
from tests.helpers import ONE_OF_EACH_FAMILY, SMALLEST_OF_FAMILY, Functional


def test_one_of_each_covers_the_table() -> None:
    assert {FAMILIES[m].names for m in SMALLEST_OF_FAMILY} == {f.names for f in FAMILIES.values() if f.build is None}


@pytest.mark.parametrize("model", [m for m in ONE_OF_EACH_FAMILY if FAMILIES[str(m.values[0])].split_points])
def test_every_split_point_divides_the_network(model: str) -> None:
    backbone = Backbone.create(model, "none", size=SMALLEST_OF_FAMILY[model])
    network = backbone.network.eval()
    images = torch.randn(2, 3, SMALLEST_OF_FAMILY[model], SMALLEST_OF_FAMILY[model])
    split_points = partition.split_points(network, backbone.family)
    assert len(split_points) > 3
    with torch.inference_mode():
        for split_point in split_points:
            features = partition.forward_to(network, split_point, images)
            partition.verify_partition(network, split_point, backbone.family.head, features, images)


def test_check_is_not_deceived_by_a_head_of_zeros() -> None:
    network, images = Functional().eval(), torch.randn(2, 3, 8, 8)
    nn.init.zeros_(network.fc.weight)
    nn.init.zeros_(network.fc.bias)
    with pytest.raises(ValueError, match="what follows drop is more than its modules"):
        partition.verify_partition(network, "drop", "fc", partition.forward_to(network, "drop", images), images)


def test_half_dropout_drops_half_and_keeps_the_mean() -> None:
    values = torch.ones(8, 64, 9, 9).to(memory_format=torch.channels_last)
    dropped = partition.half_dropout(values)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert float((dropped[0] == dropped[1]).float().mean()) == pytest.approx(0.5, abs=0.03)  # masks are independent
    assert float((dropped[:, 1:] == dropped[:, :-1]).float().mean()) == pytest.approx(0.5, abs=0.02)
    torch.manual_seed(5)
    first = partition.half_dropout(values)
    torch.manual_seed(5)
    assert torch.equal(first, partition.half_dropout(values))
    leaf = torch.randn(3, 5, requires_grad=True)
    partition.half_dropout(leaf).sum().backward()
    assert leaf.grad is not None
    assert set(leaf.grad.unique().tolist()) <= {0.0, 2.0}


# --- what varies -------------------------------------------------------------------------------------------------


class Varying(nn.Module):
    """One module before its head, in training mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.conv, self.some, self.fc = nn.Conv2d(3, 4, 3), module, nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("library", "kind", "arguments"),
    [
        ("torch.nn", "Dropout", (0.1,)), ("torchvision.ops", "StochasticDepth", (0.1, "row")),
        ("torchvision.ops", "DropBlock2d", (0.1, 3)), ("timm.layers", "DropPath", (0.1,)),
        ("timm.layers", "DropBlock2d", (0.1,)), ("timm.layers", "PatchDropout", (0.1,)),
    ],
)  # fmt: skip
def test_a_module_that_draws_numbers_varies_unless_its_rate_is_0(
    library: str, kind: str, arguments: tuple[float, ...]
) -> None:
    make = getattr(pytest.importorskip(library), kind)
    drawing = Varying(make(*arguments)).train()
    assert partition.first_varying_module(drawing, "fc", ()) == "some"
    drawing.some.eval()
    assert partition.first_varying_module(drawing, "fc", ()) is None
    still = Varying(make(0.0, *arguments[1:])).train()
    assert partition.first_varying_module(still, "fc", ()) is None


def test_norms_over_a_batch_vary_and_others_do_not() -> None:
    assert partition.first_varying_module(Varying(nn.BatchNorm2d(4)).train(), "fc", ()) == "some"
    assert partition.first_varying_module(Varying(nn.GroupNorm(2, 4)).train(), "fc", ()) is None
