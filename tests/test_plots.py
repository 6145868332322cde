"""Pictures: they are drawn without a display, and refuse what is not planar."""

import pytest
import torch

from wgflow import KDE, Gaussian, Trajectory, flow, mean_shift

pytest.importorskip("matplotlib")
from wgflow import plots

CLOUD = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def short_flow() -> Trajectory:
    return flow(lambda x: mean_shift(x, CLOUD, kernel=Gaussian(1.0)), CLOUD[:10], dt=0.5, steps=4)


def test_every_layer_of_a_picture_is_drawn(tmp_path):
    ax, box = plots.axes(3, 3), (-3.0, 3.0, -3.0, 3.0)
    plots.density(ax, KDE(CLOUD, Gaussian(0.5)).log_density, box=box, grid=20)
    plots.field(ax, lambda x: mean_shift(x, CLOUD, kernel=Gaussian(1.0)), box=box, grid=6)
    plots.trajectories(ax, short_flow(), count=5)
    plots.samples(ax, CLOUD, label="data")
    ax.figure.savefig(tmp_path / "picture.png", dpi=60)
    assert (tmp_path / "picture.png").stat().st_size > 5000
    assert len(ax.lines) == 5


def test_a_trajectory_plots_itself(tmp_path):
    path = short_flow()
    ax = path.plot(count=5)
    assert len(ax.lines) == 5
    assert path.plot(ax) is ax
    with pytest.raises(ValueError, match="wanted \\[N, 2\\]"):
        flow(torch.ones_like, torch.zeros(4, 3), dt=1, steps=1).plot()


def test_a_film_has_a_frame_for_each_snapshot(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = short_flow()
    film = plots.animate(path, tmp_path / "film.gif", data=CLOUD, size=2)
    with image.open(film) as read:
        assert read.n_frames == len(path)
    with pytest.raises(ValueError, match="gif"):
        plots.animate(path, tmp_path / "film.avi")


@pytest.mark.parametrize(
    "draw", [plots.samples, lambda ax, c: plots.trajectories(ax, flow(torch.ones_like, c, dt=1, steps=1))]
)
def test_a_picture_is_planar(draw):
    with pytest.raises(ValueError, match="wanted \\[N, 2\\]"):
        draw(plots.axes(), torch.zeros(4, 3))
