"""Pictures: they are drawn without a display, and refuse what is not planar."""

import pytest
import torch

from wgflow import KDE, Gaussian, Trajectory, flow, mean_shift

pytest.importorskip("matplotlib")
from wgflow import plots

CLOUD = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def short_flow() -> Trajectory:
    return flow(lambda x: mean_shift(x, CLOUD, kernel=Gaussian(1.0)), CLOUD[:10], steps=4)


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
        flow(torch.ones_like, torch.zeros(4, 3), steps=1).plot()


def test_a_film_has_a_frame_for_each_snapshot(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = short_flow()
    film = plots.animate(path, tmp_path / "film.gif", data=CLOUD, size=2)
    with image.open(film) as read:
        assert read.n_frames == len(path)
    with pytest.raises(ValueError, match="gif"):
        plots.animate(path, tmp_path / "film.avi")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_clouds_of_every_dtype_are_drawn(dtype, tmp_path):
    pytest.importorskip("PIL.Image")
    path = flow(lambda x: -x, CLOUD.to(dtype), steps=2)
    ax, box = path.plot(), (-1.0, 1.0, -1.0, 1.0)
    plots.field(ax, lambda x: -x.to(dtype), box=box, grid=4)
    plots.streamlines(ax, lambda x: -x.to(dtype), box=box, grid=4)
    plots.density(ax, lambda x: -x.square().sum(-1).to(dtype), box=box, grid=4)
    assert plots.animate(path, tmp_path / "film.gif", size=1).stat().st_size > 0


@pytest.mark.parametrize(
    "draw",
    [plots.samples, lambda ax, c: plots.trajectories(ax, flow(torch.ones_like, c, steps=1))],
)
def test_a_picture_is_planar(draw):
    with pytest.raises(ValueError, match="wanted \\[N, 2\\]"):
        draw(plots.axes(), torch.zeros(4, 3))


def test_panels_share_a_box_and_streamlines_fill_it(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    box = (-2.0, 2.0, -1.0, 1.0)
    with plt.style.context(plots.STYLE):
        figure, axes = plots.panels("one", "two", "three", columns=2, box=box)
    assert (
        [ax.get_title() for ax in axes]
        == ["one", "two", "three"]
        == [ax.get_title() for ax in figure.axes]
    )
    plots.streamlines(
        axes[2], lambda x: mean_shift(x, CLOUD, kernel=Gaussian(1.0)), box=box, grid=8
    )
    assert all((*ax.get_xlim(), *ax.get_ylim()) == box for ax in axes)
    assert len(axes[2].collections) == 1
    figure.savefig(tmp_path / "panels.png", dpi=60)
    plt.close(figure)
    with pytest.raises(ValueError, match="needs titles"):
        plots.panels()


def test_streamlines_follow_the_field_at_their_own_place():
    """v(x, y) = (1, 0) for y > 0 only: a field that is read transposed would stream on the right instead."""
    ax = plots.axes()
    above = lambda x: torch.stack([1.0 * (x[:, 1] > 0), 0 * x[:, 0]], -1)
    plots.streamlines(ax, above, box=(-1.0, 1.0, -1.0, 1.0), grid=9)
    lines = torch.tensor(ax.collections[0].get_segments()[0])
    assert (lines[:, 1] > -0.3).all()
    assert ax.collections[0].get_segments()
