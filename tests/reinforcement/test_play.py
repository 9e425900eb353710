"""``heliostat play``: a checkpoint's agent plays as it should, the video shows it, and what cannot be is refused."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from heliostat.cli.app import main
from heliostat.config.loading import parse_any
from heliostat.config.reinforcement import ReinforcementJob
from heliostat.errors import InputError
from heliostat.reinforcement import exhibition, launch
from heliostat.reinforcement.environments import EnvironmentFailure, MinAtarEnvironment
from heliostat.reinforcement.environments.minatar_ import _MinAtarLane
from heliostat.reinforcement.environments.vector import Played
from heliostat.reinforcement.exhibition import Play, exhibit
from heliostat.reinforcement.playing import record
from heliostat.reinforcement.rollout import Episode
from heliostat.training.monitor import Snapshot
from heliostat.training.run_folder import RunFolder
from heliostat_algorithms.randomness import Random

JOB = """
name: small
seed: 3
algorithm:
  type: dqn
  network: {{type: minatar, hidden_units: 8}}
  reward_clip: null
  epsilon: {{type: linear, begin: 0, steps: 200}}
environment: {{type: minatar, game: breakout, stack: 2}}
rollout: {{environments: 2, calls: 4}}
replay: {{capacity: 1000, minimum: 64, samples_per_insert: 4}}
optimization: {{optimizer: {{type: adam, learning_rate: 1.0e-3}}, batch_size: 16, steps: 300}}
evaluation: {{episodes: 1, epsilon: 0.25, max_steps: 400}}
resources: {{runtime: local}}
checkpoint: {{every_steps: 150}}
tracking: {{system_metrics: false, uri: "sqlite:///{folder}/mlflow.db"}}
output: {folder}/runs
"""


class Silent:
    """Watches a run and shows nothing."""

    def show(self, snapshot: Snapshot) -> None:
        """Nothing is shown."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that was trained for 300 steps in this process."""
    folder = tmp_path_factory.mktemp("play")
    job = parse_any(JOB.format(folder=folder), "job")
    assert isinstance(job, ReinforcementJob)
    finished = launch.start(job, Silent(), "one")
    assert finished.outcome.status == "finished"
    return finished.folder


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """The trained run, in a folder of its own."""
    shutil.copytree(trained.storage.root, tmp_path / "runs/one")
    return RunFolder(str(tmp_path / "runs/one"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The environments that are made from now on."""
    found: list[Any] = []
    make = MinAtarEnvironment.make

    def remember(self: MinAtarEnvironment, *arguments: Any, **options: Any) -> Any:
        found.append((make(self, *arguments, **options), options))
        return found[-1][0]

    monkeypatch.setattr(MinAtarEnvironment, "make", remember)
    return found


def frames_of(path: Path) -> list[npt.NDArray[np.uint8]]:
    with Image.open(path) as image:
        frames = []
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
        return frames


def by_hand(folder: RunFolder, epsilon: float, seed: int, episodes: int) -> tuple[list[float], list[int], list[Any]]:
    """Returns, lengths and pictures of episodes that are played without any of the code for it: a loop over MinAtar
    itself, stacks put together here, and the greedy action by the network's own layers."""
    from heliostat.reinforcement.environments.seeding import episode_seed
    from heliostat.reinforcement.rollout import lane_seeds

    store = folder.checkpoints()
    weights = {
        name.removeprefix("online."): value.double()
        for name, value in store.load(store.steps()[-1])["learner"]["agent"].items()
        if name.startswith("online.")
    }
    lane = _MinAtarLane(MinAtarEnvironment(type="minatar", game="breakout", stack=2))
    (lane_seed,) = lane_seeds(seed, range(1), "play")
    returns, lengths, pictures = [], [], []
    call = 0
    for episode in range(episodes):
        before, now = np.zeros((4, 10, 10), np.uint8), lane.reset(episode_seed(lane_seed, episode))
        score, steps, over = 0.0, 0, False
        while not over:
            pictures.append(lane.render())
            x = torch.from_numpy(np.concatenate([before, now])[None]).double() / 255
            x = torch.relu(torch.conv2d(x, weights["trunk.layers.0.weight"], weights["trunk.layers.0.bias"])).flatten(1)
            x = torch.relu(x @ weights["head.values.hidden.weight"].T + weights["head.values.hidden.bias"])
            values = x @ weights["head.values.last.weight"].T + weights["head.values.last.bias"]
            draws = Random(seed, call, range(1), scope="play/").uniform("explore", 2)[0].tolist()
            action = int(draws[1] * 6) if draws[0] < epsilon else int(values.argmax())
            outcome = lane.step(action)
            before, now, over = now, outcome.frame, outcome.terminated
            score, steps, call = score + outcome.reward, steps + 1, call + 1
        call += 1  # the call in which the environment is reset
        returns.append(score)
        lengths.append(steps)
    return returns, lengths, pictures


def test_a_checkpoints_agent_plays_and_the_video_shows_it(run: RunFolder, made: list[Any]) -> None:
    told: list[tuple[int, Episode]] = []
    shown = exhibit(run, episodes=3, epsilon=0.5, seed=11, tell=lambda number, episode: told.append((number, episode)))
    returns, lengths, pictures = by_hand(run, 0.5, 11, 3)
    assert [episode.score for episode in shown.episodes] == returns
    assert [episode.length for episode in shown.episodes] == lengths
    assert told == list(enumerate(shown.episodes))
    assert (shown.epsilon, shown.seed, shown.broken_off, shown.human_normalized) == (0.5, 11, 0, None)
    assert shown.step == run.checkpoints().steps()[-1]

    assert shown.video.path == Path(run.storage.path(f"figures/play-{shown.step}.gif"))
    frames = frames_of(shown.video.path)
    assert len(frames) == shown.video.frames == sum(lengths) == len(pictures)
    assert shown.video.seconds == pytest.approx(sum(lengths) / 10)
    for frame, picture in zip(frames, pictures, strict=True):
        enlarged = picture.repeat(3, axis=0).repeat(3, axis=1)  # 160 pixels in at most 480
        left = frame[(frame.shape[0] - 480) // 2 :][:480, :480]
        assert abs(left.astype(int) - enlarged).max() <= 8  # a gif's palette
    (environment, options), *others = made
    assert not others
    assert options["render"]
    assert options["evaluation"]
    assert environment._closed


def test_the_job_decides_what_is_not_said(run: RunFolder) -> None:
    """Its evaluations' share of random actions, its seed; and the same play comes again, byte for byte."""
    first = exhibit(run)
    assert (first.epsilon, first.seed, len(first.episodes)) == (0.25, 3, 1)
    content = first.video.path.read_bytes()
    assert exhibit(run, episodes=1, epsilon=0.25, seed=3) == first
    assert first.video.path.read_bytes() == content
    others = [exhibit(run, epsilon=1.0, seed=seed).episodes for seed in range(4, 8)]
    assert len(set(others)) > 1


def test_an_older_checkpoint_has_older_weights(run: RunFolder, tmp_path: Path) -> None:
    older, newest = run.checkpoints().steps()
    shown = exhibit(run, checkpoint=older, epsilon=0.0, output=tmp_path / "old.gif")
    assert (shown.step, shown.video.path) == (older, tmp_path / "old.gif")
    assert not Path(run.storage.path("figures")).exists() or f"play-{older}.gif" not in run.figures()
    assert exhibit(run, epsilon=0.0).step == newest
    weights = [
        run.checkpoints().load(step)["learner"]["agent"]["online.head.values.last.bias"] for step in (older, newest)
    ]
    assert not torch.equal(*weights)
    assert not np.array_equal(frames_of(shown.video.path)[0], frames_of(exhibit(run, epsilon=0.0).video.path)[0])


def test_an_mp4_shows_the_same_steps(run: RunFolder, tmp_path: Path) -> None:
    import av

    shown = exhibit(run, episodes=2, output=tmp_path / "play.mp4")
    with av.open(str(tmp_path / "play.mp4")) as container:
        count = sum(1 for _ in container.decode(video=0))
    assert count == shown.video.frames == sum(episode.length for episode in shown.episodes)


class Scripted:
    """One lane, which shows how many actions its episode has had; each brings a reward of 1.

    Args:
        ends: the action that ends an episode, from 1; None: none does.
        fails: the call that raises.
    """

    def __init__(self, *, ends: int | None = None, fails: int | None = None) -> None:
        self.spec = MinAtarEnvironment(type="minatar", game="breakout", stack=2).spec()
        self.count, self.ends, self.fails = 1, ends, fails
        self.resets: list[Any] = []
        self.calls = self.since = 0
        self.over = self.closed = False

    def reset(self, seeds: Any = None) -> npt.NDArray[Any]:
        self.resets.append(seeds)
        self.since, self.over = 0, False
        return self.frame()

    def frame(self) -> npt.NDArray[Any]:
        return np.full((1, 4, 10, 10), self.since, np.uint8)

    def step(self, actions: npt.NDArray[np.int64]) -> Played:
        self.calls += 1
        if self.calls == self.fails:
            raise EnvironmentFailure("scripted", "it broke", 0, int(actions[0]))
        acted = not self.over
        self.since = self.since + 1 if acted else 0
        self.over = self.since == self.ends
        flags = (np.array([flag]) for flag in (self.over, False, False, acted))
        return Played(self.frame(), np.array([float(acted)]), *flags)

    def render(self, lane: int) -> npt.NDArray[np.uint8]:
        return np.full((20, 20, 3), self.since, np.uint8)

    def close(self) -> None:
        self.closed = True


class Watching:
    """An agent that remembers what it sees and values actions by it."""

    def __init__(self) -> None:
        self.seen: list[npt.NDArray[Any]] = []

    def act(
        self, observation: torch.Tensor, epsilon: torch.Tensor, random: Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(observation.numpy().copy())
        return torch.tensor([len(self.seen) % 6]), torch.arange(6.0)[None] + len(self.seen)


@pytest.mark.parametrize("broken_off", [False, True], ids=["the environment ends it", "it is broken off"])
def test_each_episode_begins_anew(broken_off: bool) -> None:
    agent, environment = Watching(), Scripted(ends=None if broken_off else 4)
    play = Play(agent, environment, seed=1, epsilon=0.0, episodes=3, max_steps=4 if broken_off else None)  # type: ignore[arg-type]
    moments = list(play.moments())
    assert play.episodes == [Episode(4.0, 4)] * 3
    assert play.broken_off == (3 if broken_off else 0)
    assert [seeds is None for seeds in environment.resets] == ([False, True, True] if broken_off else [False])
    assert [moment.episode_return for moment in moments] == [1.0, 2.0, 3.0, 4.0] * 3
    assert [moment.reward for moment in moments] == [1.0] * 12
    assert [int(moment.frame[0, 0, 0]) for moment in moments] == [0, 1, 2, 3] * 3, "pictures actions were chosen in"
    seen = [tuple(observation[0, ::4, 0, 0].tolist()) for observation in agent.seen]
    episode = [(0, 0), (0, 1), (1, 2), (2, 3)]
    between = [] if broken_off else [(3, 4)]  # the last frame, after which there is no action
    assert seen == [*episode, *between, *episode, *between, *episode]
    chosen = [index for index, (_, newest) in enumerate(seen) if newest < 4]
    assert [moment.action for moment in moments] == [(index + 1) % 6 for index in chosen]
    for moment, index in zip(moments, chosen, strict=True):
        assert moment.q_values.tolist() == [index + 1.0 + action for action in range(6)]


def test_a_gif_that_is_full_is_said_and_the_return_is_that_of_the_whole_episode(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = Path(run.storage.path("job.yaml"))
    job.write_text(job.read_text().replace("max_steps: 400", "max_steps: 12"))
    environment = Scripted()
    monkeypatch.setattr(MinAtarEnvironment, "make", lambda *_, **__: environment)
    monkeypatch.setattr(exhibition, "build_agent", lambda *_: _Untrained())
    monkeypatch.setattr(exhibition, "check_architecture", lambda *_: None)
    monkeypatch.setattr(exhibition, "record", partial(record, gif_frames=5))
    with caplog.at_level(logging.WARNING):
        shown = exhibit(run, episodes=2)
    assert shown.video.cut
    assert shown.video.frames == len(frames_of(shown.video.path)) == 5
    assert shown.episodes == (Episode(12.0, 12),) * 2
    assert shown.broken_off == 2
    assert "an .mp4 shows all" in caplog.text
    assert environment.closed


class _Untrained(Watching):
    def eval(self) -> _Untrained:
        return self

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def test_the_environment_is_closed_when_it_breaks(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Scripted(fails=3)
    monkeypatch.setattr(MinAtarEnvironment, "make", lambda *_, **__: environment)
    monkeypatch.setattr(exhibition, "build_agent", lambda *_: _Untrained())
    monkeypatch.setattr(exhibition, "check_architecture", lambda *_: None)
    with pytest.raises(EnvironmentFailure, match="it broke"):
        exhibit(run)
    assert environment.closed
    assert not run.figures(), "no part of a video is left"


# The command line

Heliostat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def heliostat(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Heliostat:
    """Runs the command line in this process, beside ``runs/one``: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["heliostat", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_command_prints_returns_and_where_the_video_is(heliostat: Heliostat, run: RunFolder) -> None:
    code, out, err = heliostat("play", "one", "--episodes", 2, "--seed", 11, "--epsilon", 0.5)
    assert code == 0, err
    returns, lengths, _ = by_hand(run, 0.5, 11, 2)
    for number, (score, length) in enumerate(zip(returns, lengths, strict=True), 1):
        assert f"episode {number}  return {score:g}  {length} steps" in out
    assert f"mean return {np.mean(returns):g}" in out
    assert f"figures/play-{run.checkpoints().steps()[-1]}.gif" in out


def test_json_and_nothing_else(heliostat: Heliostat, run: RunFolder, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in Path(run.storage.root).rglob("*") if path.is_file()}
    code, out, err = heliostat("play", "one", "--json", "-n", 2, "-o", tmp_path / "x.gif")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert (data["run"], data["checkpoint"], data["epsilon"], data["seed"]) == (
        "one",
        run.checkpoints().steps()[-1],
        0.25,
        3,
    )
    returns, lengths, _ = by_hand(run, 0.25, 3, 2)
    assert data["episodes"] == [
        {"return": score, "steps": steps} for score, steps in zip(returns, lengths, strict=True)
    ]
    assert data["mean_return"] == np.mean(returns)
    assert data["video"] == {
        "path": str(tmp_path / "x.gif"),
        "frames": sum(lengths),
        "seconds": sum(lengths) / 10,
        "cut": False,
    }
    assert len(frames_of(tmp_path / "x.gif")) == sum(lengths)
    after = {path: path.read_bytes() for path in Path(run.storage.root).rglob("*") if path.is_file()}
    assert after == before, "the run stays as it is"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "play.webm"], ".gif or .mp4"),
        (["--output", "nowhere/play.gif"], "there is no folder nowhere"),
        (["--checkpoint", "7"], "there is no checkpoint of step 7; complete ones: "),
        (["--episodes", "0"], "0 episodes cannot be played; 1 or more"),
        (["--epsilon", "1.5"], "1.5 is no share of random actions; it is from 0 to 1"),
        (["--epsilon", "nan"], "nan is no share"),
        (["--seed", "-1"], "a seed is 0 or more, not -1"),
    ],
)
def test_bad_arguments(heliostat: Heliostat, run: RunFolder, made: list[Any], arguments: list[str], said: str) -> None:
    code, out, err = heliostat("play", "one", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert not made, "no environment was made"
    assert not run.figures()


def test_all_wrong_numbers_come_at_once(heliostat: Heliostat) -> None:
    code, _, err = heliostat("play", "one", "--episodes=-1", "--epsilon=2", "--seed=-5")
    assert code == 2
    assert err.count("wrong input: ") == 3


def test_an_unknown_run_has_a_hint(heliostat: Heliostat) -> None:
    code, _, err = heliostat("play", "oen")
    assert code == 2
    assert "Did you mean 'one'?" in err


def test_a_run_that_trained_on_data(heliostat: Heliostat, tmp_path: Path) -> None:
    from heliostat.config.loading import dump, load

    (stage,) = load(Path(__file__).parents[2] / "jobs/representation/simclr-digits.yaml")  # type: ignore[misc]
    (tmp_path / "runs/two").mkdir()
    (tmp_path / "runs/two/job.yaml").write_text(dump(stage.job))
    code, _, err = heliostat("play", "two")
    assert code == 2
    assert "this run trained simclr on data" in err
    assert "heliostat evaluate" in err


def test_a_run_without_a_checkpoint(heliostat: Heliostat, run: RunFolder) -> None:
    run.storage.delete("checkpoints")
    code, _, err = heliostat("play", "one")
    assert code == 2
    assert "no checkpoint yet" in err


def test_a_damaged_checkpoint(heliostat: Heliostat, run: RunFolder, made: list[Any]) -> None:
    step = run.checkpoints().steps()[-1]
    path = Path(run.storage.path(f"checkpoints/step-{step:08d}/state.pt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, _, err = heliostat("play", "one")
    assert code == 2
    assert "state.pt is damaged" in err
    assert not made
    assert not run.figures()


def test_a_checkpoint_of_another_agent(run: RunFolder, made: list[Any]) -> None:
    job = Path(run.storage.path("job.yaml"))
    job.write_text(job.read_text().replace("hidden_units: 8", "hidden_units: 9"))
    with pytest.raises(InputError, match="of another architecture"):
        exhibit(run)
    ((environment, _),) = made
    assert environment._closed
    job.write_text(job.read_text().replace("type: minatar, hidden_units: 9", "type: dqn-2015, hidden_units: 9"))
    with pytest.raises(InputError, match="at least 36 x 36"):
        exhibit(run)


@pytest.mark.parametrize(
    ("entry", "suffix", "rate"),
    [
        ({"type": "atari", "game": "pong"}, ".gif", 15),
        ({"type": "atari", "game": "space_invaders", "frame_skip": 3}, ".mp4", 20),
        ({"type": "atari", "game": "pong", "frame_skip": 1}, ".gif", 50),
        ({"type": "atari", "game": "pong", "frame_skip": 1}, ".mp4", 60),
        ({"type": "atari", "game": "pong", "frame_skip": 120}, ".gif", 1),
        ({"type": "minatar", "game": "freeway"}, ".gif", 10),
        ({"type": "gymnasium", "id": "CartPole-v1"}, ".gif", 30),
    ],
)
def test_games_run_at_their_own_speed(entry: dict[str, Any], suffix: str, rate: float) -> None:
    from pydantic import TypeAdapter

    from heliostat.reinforcement.environments import EnvironmentConfig

    environment = TypeAdapter(EnvironmentConfig).validate_python(entry)
    assert exhibition._rate(environment, Path(f"play{suffix}")) == rate


def test_a_run_that_is_not_here_is_shown_here(run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run.storage, "local", False)
    shown = exhibit(run)
    assert shown.video.path == Path(f"one-play-{shown.step}.gif")
    assert (tmp_path / f"one-play-{shown.step}.gif").exists()


def test_the_verb_is_light() -> None:
    code = (
        "import sys; from heliostat.cli import play; "
        "print([m for m in ('torch', 'gymnasium', 'ray', 'PIL', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
