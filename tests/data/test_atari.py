from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from heliostat.data import DataSource, VideoData
from heliostat.data.atari import Dice, Emulator, RandomPlayer, Shape, record_game
from heliostat.data.pong import BALL_X, BALL_Y, OFFSET_X, OFFSET_Y, OPPONENT_Y, PADDLE_Y, PongPlayer
from heliostat.errors import InputError

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)
WHITE, ORANGE, GREEN = (236, 236, 236), (213, 130, 74), (92, 186, 92)
"""What the ball, the left and the right paddle of Pong are painted in."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def clips(cache: str, **fields: Any) -> Any:
    return ADAPTER.validate_python(
        {"source": "atari-clips", "games": "pong", "split": "train", "videos": 8, "clip": {"frames": 4}, "cache": cache}
        | fields
    )


def pictures(cache: str, **fields: Any) -> Any:
    return ADAPTER.validate_python(
        {"source": "atari-frames", "games": "pong", "split": "train", "images": 8, "cache": cache} | fields
    )


# The emulator and Pong's memory


def first_pixel(screen: np.ndarray, colour: tuple[int, int, int], columns: slice) -> tuple[int, int, int] | None:
    """Column, first and last row of what is painted so on the court."""
    rows, found = np.nonzero((screen[34:194, columns] == colour).all(-1))
    return (columns.start + int(found.min()), 34 + int(rows.min()), 34 + int(rows.max())) if len(rows) else None


def test_memory_holds_where_the_ball_and_the_paddles_are_seen():
    emulator, seen = Emulator("pong", 3), {"ball": 0, "left": 0, "right": 0}
    emulator.restart()
    player = PongPlayer(Dice("test"))
    for _ in range(1500):
        emulator.play(player)
        memory, screen = emulator.memory.astype(int), emulator.screen()
        ball = first_pixel(screen, WHITE, slice(20, 140))
        if ball is not None and 20 < ball[0] < 137 and 36 < ball[1] < 188:  # elsewhere a part of it is hidden
            seen["ball"] += 1
            assert ball[0] == memory[BALL_X] - OFFSET_X
            assert abs(ball[1] - (memory[BALL_Y] - OFFSET_Y)) <= 1  # fast balls are drawn up to a row lower
        if memory[BALL_Y] == 0:
            assert ball is None
        for side, place, colour, columns in (
            ("left", OPPONENT_Y, ORANGE, slice(16, 20)),
            ("right", PADDLE_Y, GREEN, slice(140, 144)),
        ):
            paddle = first_pixel(screen, colour, columns)
            if paddle is not None and 40 < paddle[1] < paddle[2] < 190:
                seen[side] += 1
                assert abs(paddle[2] - memory[place]) <= 2
    assert min(seen.values()) > 400


def test_writing_the_memory_moves_the_ball():
    emulator = Emulator("pong", 3)
    emulator.restart()
    player = PongPlayer(Dice("test"))
    while not 80 < emulator.memory[BALL_Y] < 160:
        emulator.play(player)
    emulator.write({BALL_X: 120, BALL_Y: 100})
    emulator.play(player)
    x, y, _ = first_pixel(emulator.screen(), WHITE, slice(20, 140))
    assert abs(x - (120 - OFFSET_X)) <= 2
    assert abs(y - (100 - OFFSET_Y)) <= 4


def test_dice_are_even_and_the_same_each_time():
    from scipy.stats import chisquare

    dice, again, other = Dice("a"), Dice("a"), Dice("b")
    rolled = [dice.integer(-1, 4) for _ in range(6000)]
    assert rolled[:100] == [again.integer(-1, 4) for _ in range(100)]
    assert rolled[:100] != [other.integer(-1, 4) for _ in range(100)]
    assert set(rolled) == set(range(-1, 5))
    assert chisquare(np.bincount(np.array(rolled) + 1)).pvalue > 1e-4


def test_random_player_presses_all_buttons_and_holds_them():
    emulator = Emulator("breakout", 1)
    player = RandomPlayer(Dice("test"))
    pressed = [player.action(emulator) for _ in range(3000)]
    changes = sum(one != other for one, other in pairwise(pressed))
    assert set(pressed) == set(emulator.actions)
    assert 3000 / 30 < changes < 3000 / 8


# Labels


def centres(data: VideoData) -> np.ndarray:
    """(videos, frames, 2): column and row of the ball in pictures of 160 x 160 (a screen has 160 columns, 210 rows)."""
    frames = data.frames.reshape(len(data), -1, 3, 160, 160)[:, :, :, 26:148, 20:140]
    white = np.clip(frames.min(axis=2).astype(float) - 80, 0, None)  # the court's blue is 17, that of paddles 92
    total = white.sum(axis=(2, 3))
    assert (total > 0).all()
    return np.stack([(white.sum(axis=2) @ np.arange(120)) / total, (white.sum(axis=3) @ np.arange(122)) / total], -1)


@pytest.fixture(scope="module")
def flights(cache: str) -> VideoData:
    return clips(cache, videos=400, label="ball-direction", frame_skip=5, image_size=160).load()


def test_directions_are_those_that_are_seen(flights):
    steps = np.diff(centres(flights), axis=1)
    for name, (right, down) in {
        "left-up": (-1, -1), "left-down": (-1, 1), "right-up": (1, -1), "right-down": (1, 1)
    }.items():  # fmt: skip
        own = steps[flights.labels == flights.classes.index(name)]
        assert len(own) == 100
        np.testing.assert_allclose(own[..., 0], 5 * right, atol=0.8)  # 1 column per frame of the emulator, 5 of which
        rows = own[..., 1] * down * 210 / 160
        assert ((abs(rows - 5) < 2) | (abs(rows - 10) < 2)).all()  # 1 or 2 rows, give or take a blurred one
        assert (rows.round() > 7).any()
        assert (rows.round() < 7).any()


def test_where_the_ball_is_does_not_tell_the_direction(flights):
    """Nearest neighbours and a straight line in the places of single frames are at chance, which is a quarter."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    places = centres(flights)
    train = np.arange(400) < 200
    for chosen in (places[:, 1], places[:, 2], places.mean(axis=1), np.sort(places, axis=1).reshape(400, -1)):
        for model in (KNeighborsClassifier(9), LogisticRegression(max_iter=1000)):
            model.fit(chosen[train], flights.labels[train])
            score = model.score(chosen[~train], flights.labels[~train])
            # Four and a half standard deviations. Without their order, places tell one diagonal from the other: a half.
            assert score < (0.25 if chosen.shape[1] == 2 else 0.5) + 4.5 * (0.5 / 200**0.5) / 1.15
    assert all(np.ptp(places[flights.labels == label, 2], axis=0).min() > 60 for label in range(4))


def test_paddles_do_not_tell_the_direction(flights):
    """One is held and one is moved at random, so neither is where the ball came from."""
    frames = flights.frames.reshape(400, 4, 3, 160, 160)
    for columns in (slice(16, 20), slice(140, 144)):
        rows = frames[:, 2, 0, 27:147, columns].astype(float).mean(axis=2)
        background = np.median(rows)
        weight = np.abs(rows - background)
        place = (weight @ np.arange(120)) / weight.sum(axis=1)
        for sign in (flights.labels % 2, flights.labels // 2):
            ups, downs = place[sign == 0], place[sign == 1]
            spread = (ups.var() / len(ups) + downs.var() / len(downs)) ** 0.5
            assert abs(ups.mean() - downs.mean()) < 4.5 * spread


def test_games_take_turns_and_are_the_classes(cache):
    data = clips(cache, games=["pong", "breakout", "ms_pacman"], videos=9).load()
    assert data.classes == ("pong", "breakout", "ms_pacman")
    assert data.labels.tolist() == [0, 1, 2] * 3
    assert data.name == "atari-clips/pong+breakout+ms_pacman/train"
    assert (data.clip_frames, data.clip_stride, data.lengths.tolist()) == (4, 1, [4] * 9)
    alone = clips(cache, games="breakout", videos=3).load()
    own = data.frames.reshape(9, 4, 3, 64, 64)[1::3]
    np.testing.assert_array_equal(alone.frames.reshape(own.shape), own)  # a game does not depend on its company


def test_images_of_games(cache):
    data = pictures(cache, games=["pong", "breakout"], images=10, image_size=84, channels=1).load()
    assert data.images.shape == (10, 1, 84, 84)
    assert data.classes == ("pong", "breakout")
    assert data.labels.tolist() == [0, 1] * 5
    assert len({image.tobytes() for image in data.images}) > 7


def test_videos_longer_than_a_clip(cache):
    data = clips(cache, videos=3, video_frames=9, clip={"frames": 3, "stride": 2}).load()
    assert (data.lengths.tolist(), data.span) == ([9, 9, 9], 5)


def test_frame_skip_leaves_frames_out():
    every = next(record_game("pong", "train", Shape(frames=9, frame_skip=1, image_size=16, channels=1)))
    other = next(record_game("pong", "train", Shape(frames=5, frame_skip=2, image_size=16, channels=1)))
    np.testing.assert_array_equal(other, every[::2])
    assert not np.array_equal(every[0], every[1])


def test_pixels_are_the_means_of_their_areas():
    screen = np.random.default_rng(0).integers(0, 256, (210, 160, 3), dtype=np.uint8)
    shape = Shape(frames=1, frame_skip=1, image_size=10, channels=3)
    expected = screen.reshape(10, 21, 10, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(shape.resized([screen])[0], expected, atol=1)


# Recordings


def test_recordings_are_a_function_of_game_split_and_settings(tmp_path):
    """Numbers that people compare depend on them: a change of these digests is a change of the data set."""
    prints = [
        clips(str(tmp_path), videos=4, **fields).load().fingerprint[:16]
        for fields in (
            {"games": ["pong", "breakout"]},
            {"games": ["pong", "breakout"], "split": "test"},
            {"label": "ball-direction"},
            {"label": "ball-direction", "split": "test"},
        )
    ]
    assert prints == ["932198655836fb57", "37c8bb9ca81d7c89", "57a452c79c7a1022", "105d07915b2cb348"]


def test_a_longer_recording_of_games_begins_with_a_shorter_one(tmp_path):
    short, long = (clips(str(tmp_path), videos=videos).load() for videos in (3, 6))
    np.testing.assert_array_equal(long.frames[: len(short.frames)], short.frames)


def test_splits_have_no_picture_in_common(cache):
    """Even a game that shows the same again and again, in small grey pictures."""
    train, test = (
        pictures(cache, games="ms_pacman", split=split, images=120, image_size=8, channels=1).load()
        for split in ("train", "test")
    )
    seen = [[image.tobytes() for image in data.images] for data in (train, test)]
    assert len(set(seen[0])) < 120
    assert not set(seen[0]) & set(seen[1])


def test_second_load_reads_the_recording(cache, monkeypatch, caplog):
    source = clips(cache, videos=5)
    first = source.load()
    monkeypatch.setattr("heliostat.data.atari.record_games", None)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert source.load().fingerprint == first.fingerprint
    assert caplog.text == ""


def test_progress_is_told(tmp_path):
    told = []
    clips(str(tmp_path), videos=3).load(lambda *seen: told.append(seen))
    assert told == [("recording pong", done, 3) for done in (1, 2, 3)]


# Input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"games": []}, "at least 1"),
        ({"games": ["pong", "pong"]}, "each may be named once"),
        ({"games": "breakout", "label": "ball-direction"}, "known of pong alone, not of breakout"),
        ({"games": ["pong", "breakout"], "label": "ball-direction"}, "known of pong alone"),
        ({"video_frames": 3}, "spans 4 frames, so videos of 3 are too short"),
        ({"frame_skip": 0}, "greater than or equal to 1"),
        ({"image_size": 4}, "greater than or equal to 8"),
        ({"split": "validation"}, "'train' or 'test'"),
        ({"videos": 0}, "greater than 0"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        clips("cache", **fields)


def test_check_names_the_nearest_game_and_the_cache(tmp_path):
    (tmp_path / "file").write_text("x")
    problems = clips(str(tmp_path / "file"), games=["pong", "brekout"]).check()
    assert "is a file" in problems[0]
    assert problems[1] == "there is no Atari game 'brekout'. Did you mean 'breakout'?"
    assert clips(str(tmp_path), games=["pong", "ms_pacman"]).check() == []
    with pytest.raises(InputError, match="Did you mean 'breakout'"):
        pictures(str(tmp_path), games="brekout").load()


def test_flights_longer_than_the_court(tmp_path):
    (problem,) = clips(str(tmp_path), label="ball-direction", clip={"frames": 16}, frame_skip=6).check()
    assert "span 91 frames of play, and no ball flies longer than 77" in problem
    assert clips(str(tmp_path), label="ball-direction", clip={"frames": 16}, frame_skip=5).check() == []


def test_videos_longer_than_any_match(tmp_path, monkeypatch):
    monkeypatch.setattr(Emulator, "play", lambda self, player: False)
    with pytest.raises(InputError, match="pong cannot be recorded: 50 matches in a row ended before 7 frames"):
        clips(str(tmp_path)).load()


def test_a_game_that_always_looks_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(Emulator, "screen", lambda self: np.zeros((210, 160, 3), np.uint8))
    outcomes = []
    for split in ("train", "test"):
        try:
            outcomes.append(len(clips(str(tmp_path), videos=2, split=split).load()))
        except InputError as error:
            outcomes.append(str(error))
    assert sorted(map(str, outcomes)) == ["2", "pong cannot be recorded: it shows the same again and again"]


def test_resolved_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert clips("here").resolved().cache == str(tmp_path / "here")
