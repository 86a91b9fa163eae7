"""The plan of a run: every step and caption is known before, and nothing else is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from lora_workbench.training.config import TrainConfig
from lora_workbench.training.data.dataset import CaptionPolicy, Dataset, Picture, Placement
from lora_workbench.training.plan import Plan, is_trained_with_words, whole_captions

SMALL, LARGE = (Placement((side, side), (side, side), (0, 0)) for side in (256, 512))


def dataset(repeats: float = 2, policy: CaptionPolicy | None = None) -> Dataset:
    pictures = tuple(
        Picture(Path(f"{n}.png"), (9, 9), f"zorp, hat{n}, sea\nzorp, a line of {n}", repeats,
                placement=LARGE if n == 4 else SMALL)
        for n in range(7)
    )  # fmt: skip
    return Dataset(pictures, trigger="zorp", policy=policy)


def shown(plan: Plan) -> list[list[int]]:
    return [list(batch.indices) for _, batch in plan.micro_batches()]


@pytest.mark.parametrize("settings", [{"epochs": 3}, {"steps": 5}, {"steps": 17}, {"epochs": 2, "steps": 1}])
@pytest.mark.parametrize("more", [{}, {"batch_size": 3, "gradient_accumulation": 2}])
def test_the_micro_batches_are_those_of_the_steps(settings, more):
    plan = Plan(dataset(), TrainConfig(**settings, **more))
    steps = [step for epoch in range(plan.epochs) for step in plan.steps(epoch)][: plan.total]
    assert len(steps) == plan.total
    assert shown(plan) == [list(batch.indices) for step in steps for batch in step]
    assert [number for number, _ in plan.micro_batches()] == list(range(len(shown(plan))))


def test_epochs_with_parts_of_repeats_are_counted_as_they_are():
    plan = Plan(dataset(repeats=0.4), TrainConfig(epochs=5, batch_size=2))
    assert plan.total == sum(len(plan.steps(epoch)) for epoch in range(5))
    assert sum(map(len, shown(plan))) == 14


def test_without_a_policy_a_caption_is_itself_on_one_line():
    plan = Plan(dataset(), TrainConfig(epochs=2))
    assert plan.captions() == [f"zorp, hat{n}, sea a line of {n}" for n in range(7)]
    assert plan.caption(3, 9, 1) == plan.captions()[3]


def test_live_captions_are_all_known_before():
    policy = CaptionPolicy(shuffle=True, tag_dropout=0.2, caption_dropout=0.1)
    plan = Plan(dataset(policy=policy), TrainConfig(epochs=20, batch_size=2))
    asked = {
        plan.caption(index, micro_step, place)
        for micro_step, batch in plan.micro_batches() for place, index in enumerate(batch.indices)
    }  # fmt: skip
    assert set(plan.captions()) == asked and len(asked) > 20
    assert all(caption.startswith("zorp") for caption in asked)
    again = Plan(dataset(policy=policy), TrainConfig(epochs=20, batch_size=2))
    assert again.captions() == plan.captions()
    other = Plan(dataset(policy=policy), TrainConfig(epochs=20, batch_size=2, seed=1))
    assert other.captions() != plan.captions()


def test_one_line_of_several_is_drawn_only_if_asked_for():
    joined = set(Plan(dataset(policy=CaptionPolicy()), TrainConfig(epochs=10)).captions())
    assert joined == {f"zorp, hat{n}, sea a line of {n}" for n in range(7)}
    asked = set(Plan(dataset(policy=CaptionPolicy(draw_one_line=True)), TrainConfig(epochs=10)).captions())
    assert asked == {f"zorp, hat{n}, sea" for n in range(7)} | {f"zorp, a line of {n}" for n in range(7)}


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_rehearsed_batch_is_one_of_the_run(steps):
    plan = Plan(dataset(policy=CaptionPolicy(shuffle=True)), TrainConfig(steps=steps, epochs=2, batch_size=2))
    number, batch = plan.largest()
    assert dict(plan.micro_batches())[number] == batch
    if not steps:
        assert batch.bucket == (512, 512)
    assert {plan.caption(index, number, place) for place, index in enumerate(batch.indices)} <= set(plan.captions())


def test_images_per_step():
    plan = Plan(dataset(), TrainConfig(epochs=1, batch_size=4))
    assert plan.images_per_step == 14 / 4
    assert Plan(replace(dataset(), pictures=dataset().pictures[:1]), TrainConfig()).images_per_step == 1


@pytest.mark.parametrize("policy", [None, CaptionPolicy(shuffle=True)])
@pytest.mark.parametrize("repeats", [2, 0.4])
def test_captions_of_one_length_share_a_batch(policy, repeats):
    data = dataset(repeats, policy)
    whole = whole_captions(data)
    lengths = {caption: (20 + 10 * (index % 2),) for index, caption in enumerate(whole)}
    plan = Plan(data, TrainConfig(epochs=5, batch_size=3), lengths)
    assert all(batch.length == lengths[whole[index]] for _, batch in plan.micro_batches() for index in batch.indices)
    assert plan.total == sum(len(plan.steps(epoch)) for epoch in range(5))
    # A picture that could not be encoded is left out later.
    fewer = Plan(data.with_pictures(data.pictures[1:]), plan.config, plan.lengths)
    shown = [(batch, index + 1) for _, batch in fewer.micro_batches() for index in batch.indices]
    assert all(batch.length == lengths[whole[index]] for batch, index in shown)


def test_of_equal_pixels_the_longest_captions_are_rehearsed():
    data = dataset().with_pictures(replace(picture, placement=SMALL) for picture in dataset().pictures)
    lengths = {caption: (200 if index == 5 else 20,) for index, caption in enumerate(whole_captions(data))}
    assert Plan(data, TrainConfig(batch_size=2), lengths).largest()[1].indices == (5, 5)


def test_a_much_longer_caption_outweighs_a_few_pixels():
    data = dataset()
    lengths = {caption: (2000 if index == 5 else 20,) for index, caption in enumerate(whole_captions(data))}
    assert 5 in Plan(data, TrainConfig(), lengths).largest()[1].indices
    longest = replace(data.pictures[3], caption="a word " * 4000)
    uncounted = data.with_pictures([*data.pictures[:3], longest, *data.pictures[4:]])
    assert Plan(uncounted, TrainConfig()).largest()[1].indices == (3,)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("counted", [False, True])
def test_the_rehearsed_caption_was_not_dropped(counted, seed):
    data = dataset(policy=CaptionPolicy(caption_dropout=0.8))
    lengths = {caption: (20,) for caption in whole_captions(data)} if counted else {}
    plan = Plan(data, TrainConfig(epochs=1, seed=seed), lengths)
    number, largest = plan.largest()
    same = [(n, batch) for n, batch in plan.micro_batches() if batch.bucket == largest.bucket]
    drawn = [len(plan.caption(batch.indices[0], n, 0)) for n, batch in same]
    assert len(plan.caption(largest.indices[0], number, 0)) == max(drawn)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("repeats", [2, 0.4])
def test_captions_of_every_nth_epoch_are_dropped(repeats, every):
    data = dataset(repeats, CaptionPolicy(drop_every_epochs=every))
    plan, seen = Plan(data, TrainConfig(epochs=6, batch_size=2)), 0
    for epoch in range(6):
        for batch in (batch for step in plan.steps(epoch) for batch in step):
            assert plan.epoch_of(seen) == epoch
            for place, index in enumerate(batch.indices):
                caption = plan.caption(index, seen, place)
                # As in kohya's trainer, the first epoch is number 1.
                assert caption == ("zorp" if (epoch + 1) % every == 0 else whole_captions(data)[index])
            seen += 1
    sizes = {len([batch for step in plan.steps(epoch) for batch in step]) for epoch in range(6)}
    assert repeats == 2 or len(sizes) > 1, "all epochs are equally long"
    assert plan.epoch_of(0) == 0 and Plan(data, plan.config).epoch_of(seen - 1) == 5
    assert plan.captions() == Plan(data, plan.config).captions() and "zorp" in plan.captions()
    assert all(is_trained_with_words(picture, data) for picture in data.pictures)


def test_only_captions_of_the_policy_are_dropped_by_epoch():
    whole = dataset(1)
    dropping = CaptionPolicy(drop_every_epochs=1)
    data = whole.with_pictures(
        replace(picture, own_policy=dropping, own_trigger="" if index == 1 else None) if index < 2 else picture
        for index, picture in enumerate(whole.pictures)
    )
    plan = Plan(data, TrainConfig(epochs=1))
    assert [plan.caption(index, 3, 0) for index in range(7)] == ["zorp", "", *whole_captions(whole)[2:]]


EMPTYING = CaptionPolicy(tag_dropout=1.0, keep_tokens=0)


@pytest.mark.parametrize(
    ("caption", "policy", "words"),
    [
        ("a hat", None, True),
        ("☆", None, True),
        ("", None, False),
        (" ,\n，\u3000", None, False),
        ("\ufeff\u200b", None, False),
        ("a hat, sea", EMPTYING, False),
        ("zorp, sea", EMPTYING, True),  # the trigger is never dropped
        ("a hat, sea", CaptionPolicy(tag_dropout=0.9, keep_tokens=0), True),
        ("{|a hat}", CaptionPolicy(), True),
        ("{|}", CaptionPolicy(wildcards=True), False),
        ("a hat", CaptionPolicy(caption_dropout=1.0), True),  # meant
    ],
    ids=str,
)
def test_which_captions_have_words_when_they_are_trained(caption, policy, words):
    picture = Picture(Path("a.png"), (9, 9), caption)
    whole = Dataset((picture,), trigger="zorp", policy=policy)
    assert is_trained_with_words(picture, whole) == words
    own = replace(picture, own_policy=policy)
    assert is_trained_with_words(own, Dataset((own,), trigger="zorp")) == words
