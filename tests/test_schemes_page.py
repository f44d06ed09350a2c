"""docs/schemes.md is what the settings and the last figures say."""

from benchmarks import schemes
from repr_ray.method.loss_settings import LossSettings
from repr_ray.method.settings import SchemeSettings


def test_the_page_is_made_from_the_settings_and_the_figures() -> None:
    assert schemes.PAGE.read_text() == schemes.page(), "python -m benchmarks.schemes --page"


def test_every_scheme_and_loss_is_measured_and_says_its_source() -> None:
    costs, text = schemes._costs(schemes.RESULTS / "schemes-cpu.md"), schemes.page()
    kinds = {kind for kind in SchemeSettings.kinds if ":" not in kind} - {"standard"}
    assert kinds <= set(costs)
    losses = {kind for kind in LossSettings.kinds if ":" not in kind}
    assert {f"loss: {kind}" for kind in losses} <= set(costs)
    for kind in kinds | losses:
        [line] = [line for line in text.splitlines() if line.startswith(f"| `{kind}` |")]
        assert "https://arxiv.org/abs/" in line, kind
