"""Built-in streets and people: repeatable, in range, and with true depth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdepth.convert.dataset.scenes import FAR_M, draw_background, draw_person, ground_depth
from maskdepth.convert.dataset.scenes.raycast import (
    GROUND,
    SKY,
    Camera,
    Card,
    Hits,
    block,
    cast,
    taper,
)

seeds = st.integers(0, 2**31)


def grey(hits: Hits) -> np.ndarray:
    return np.full((len(hits.x), 3), 0.5, np.float32)


cameras = st.builds(
    Camera,
    size=st.integers(16, 48),
    focal=st.floats(20, 60),
    centre=st.floats(5, 40),
    horizon=st.floats(5, 40),
    height=st.floats(1, 3),
    yaw=st.floats(-0.8, 0.8),
)


@given(camera=cameras)
def test_ground_depth_follows_the_pinhole_formula(camera: Camera) -> None:
    view = cast(camera, [], [])
    below = np.arange(camera.size) + 0.5 - camera.horizon
    is_ground = below > 1e-3
    expected = camera.focal * camera.height / below[is_ground]
    np.testing.assert_allclose(
        view.depth[is_ground], expected[:, None].repeat(camera.size, 1), 1e-4
    )
    assert (view.owner[is_ground] == GROUND).all()
    assert (view.owner[below < -1e-3] == SKY).all()


@given(camera=cameras, distance=st.floats(3, 50))
def test_a_wall_across_the_view_has_one_depth(camera: Camera, distance: float) -> None:
    straight = Camera(**(vars(camera) | {"yaw": 0.0}))
    wall = block((-900, 900), (0, 900), (distance, distance + 1), grey)
    view = cast(straight, [wall], [])
    np.testing.assert_allclose(view.depth[view.owner == 1], distance, rtol=1e-4)
    assert (view.depth <= distance * 1.0001).all()


@given(camera=cameras, data=st.data())
def test_cast_finds_a_solid_wherever_a_full_search_does(
    camera: Camera, data: st.DataObject
) -> None:
    """The image window and the test for hidden solids only save time."""
    x, z = data.draw(st.floats(-6, 6)), data.draw(st.floats(2.5, 20))
    solid = taper(
        block((x, x + 2), (0, 2), (z, z + 3), grey), [((0.0, 1.0, 1.0), (x, 1.5, z + 2.5))]
    )
    view = cast(camera, [solid], [])
    origin = np.array([0, camera.height, 0], np.float32)
    reach, _ = solid.enter(origin, camera.directions())
    ground = cast(camera, [], []).depth
    np.testing.assert_array_equal(view.depth, np.minimum(ground, reach))


def test_a_card_hides_what_is_farther_and_not_what_is_nearer() -> None:
    camera = Camera(size=32, focal=32, centre=16, horizon=16, height=1.5)

    def draw(right: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((*right.shape, 3)), np.abs(right) < 0.5

    card = Card(right=0, depth=5, half_width=1, height=3, draw=draw)
    for distance, expected in ((4.0, 4.0), (9.0, 5.0)):
        wall = block((-50, 50), (0, 50), (distance, distance + 1), grey)
        assert cast(camera, [wall], [card]).depth[10, 16] == pytest.approx(expected)


@settings(max_examples=5, deadline=None)
@given(seed=seeds, index=st.integers(0, 1000))
def test_background_is_repeatable_and_its_ground_is_true(seed: int, index: int) -> None:
    scene = draw_background(seed, index, 64)
    again = draw_background(seed, index, 64)
    np.testing.assert_array_equal(scene.image, again.image)
    np.testing.assert_array_equal(scene.depth, again.depth)
    assert scene.image.shape == (64, 64, 3)
    assert scene.image.dtype == np.uint8
    assert scene.depth.shape == (64, 64)
    assert scene.depth.dtype == np.float32
    assert scene.image.std() > 5
    camera = scene.camera
    flat = ground_depth(64, camera.horizon, camera.focal, camera.height)
    # Solids are on the ground, so below the horizon nothing is farther than the ground.
    below = np.arange(64) + 0.5 > camera.horizon
    assert (scene.depth[below] <= flat[below] * 1.001).all()
    assert np.isclose(scene.depth, flat, rtol=1e-3)[below].mean() > 0.05
    assert scene.depth.min() > 0
    assert scene.depth.max() <= FAR_M


def test_sizes_show_the_same_street() -> None:
    small, large = draw_background(3, 1, 64), draw_background(3, 1, 128)
    middle = large.depth.reshape(64, 2, 64, 2).mean(axis=(1, 3))
    assert np.median(np.abs(small.depth - middle) / small.depth) < 0.02


@settings(max_examples=8, deadline=None)
@given(seed=seeds, index=st.integers(0, 1000))
def test_person_is_repeatable_and_cropped(seed: int, index: int) -> None:
    person = draw_person(seed, index)
    np.testing.assert_array_equal(person, draw_person(seed, index))
    assert person.dtype == np.uint8
    assert person.shape[2] == 4
    height, width = person.shape[:2]
    assert height >= 200
    assert width * 105 / height < 224
    visible = person[..., 3] != 0
    assert 0.05 < visible.mean() < 0.9
    assert visible[[0, -1]].any(axis=1).all()
    assert visible[:, [0, -1]].any(axis=0).all()


def test_pictures_of_different_numbers_differ() -> None:
    scenes = [draw_background(0, i, 32).image for i in range(3)]
    assert len({s.tobytes() for s in scenes}) == 3
    assert len({draw_person(s, i).tobytes() for s in (0, 1) for i in (0, 1)}) == 4
