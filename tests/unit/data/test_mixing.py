"""Combined datasets: how often each is shown, and that every regularization picture gets its turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest
from lora_workbench.training.data.batches import epoch_batches
from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
from lora_workbench.training.data.dataset import CaptionPolicy, Dataset, Picture, Placement
from lora_workbench.training.data.mixing import concat, with_prior_preservation, with_regularization
from lora_workbench.training.errors import UserError

PLACE = Placement((512, 512), (512, 512), (0, 0))


def made(name: str, count: int, repeats: float = 1, **more: object) -> Dataset:
    pictures = tuple(
        Picture(Path(f"/{name}/{n}.png"), (512, 512), name, repeats, concept=name, placement=PLACE)
        for n in range(count)
    )
    return Dataset(pictures, name=name, root=Path(f"/{name}"), **more)


def seen(dataset: Dataset, epoch: int) -> Counter[str]:
    return Counter(
        dataset.pictures[index].concept for batch in epoch_batches(dataset, 2, 0, epoch) for index in batch.indices
    )


def test_concat_applies_weights_to_repeats():
    both = concat([made("a", 3, 2, trigger="zorp"), made("b", 4)], [1.0, 0.5])
    assert both.trigger == "zorp" and both.root is None and len(both.pictures) == 7
    assert [picture.repeats for picture in both.pictures] == [2, 2, 2, 0.5, 0.5, 0.5, 0.5]
    assert seen(both, 0) == {"a": 6, "b": 2}
    assert concat([made("a", 3)]) == made("a", 3)


def test_each_dataset_keeps_its_trigger_and_its_caption_policy():
    live = CaptionPolicy(shuffle=True)
    one, two = made("a", 1, trigger="zorp", policy=live), made("b", 1, trigger="quib")
    both = concat([concat([one, two]), made("c", 1, trigger="zorp")])
    assert [both.trigger_of(picture) for picture in both.pictures] == ["zorp", "quib", "zorp"]
    assert [both.policy_of(picture) for picture in both.pictures] == [live, None, None]
    alike = concat([one, made("b", 1, trigger="zorp", policy=live)])
    assert alike.policy == live and {picture.own_trigger for picture in alike.pictures} == {None}


@pytest.mark.parametrize("count", [3, 10, 37])
def test_regularization_pictures_match_the_learned_ones_in_number_and_take_turns(count):
    mixed = with_regularization(made("zorp", 4, 5), made("creature", count), weight=0.5)
    assert {picture.weight for picture in mixed.pictures if picture.is_regularization} == {0.5}
    assert {picture.weight for picture in mixed.pictures if not picture.is_regularization} == {1.0}
    total: Counter[int] = Counter()
    for epoch in range(10):
        assert seen(mixed, epoch) == {"zorp": 20, "creature": 20}
        total.update(index for batch in epoch_batches(mixed, 2, 0, epoch) for index in batch.indices)
    assert set(total) == set(range(4 + count)), "some were never shown"


def test_the_share_of_regularization_pictures_can_be_chosen():
    mixed = with_regularization(made("zorp", 4, 5), made("creature", 40), share=0.5)
    assert [seen(mixed, epoch) for epoch in range(4)] == [{"zorp": 20, "creature": 10}] * 4


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: with_prior_preservation(made("a", 1)), "no trigger word"),
        (lambda: with_prior_preservation(made("a", 1, trigger="zorp")), "No caption has the trigger"),
        (lambda: with_prior_preservation(made("a", 1, trigger="zorp"), prompts=["a Zorp!"]), "has the trigger"),
        (lambda: concat([made("a", 1), made("b", 1)], [1, 0]), "A weight is 0"),
        (lambda: concat([made("a", 1), replace(made("b", 1), background=(0, 0, 0))]), "different background"),
        (lambda: concat([made("a", 1), made("b", 1).with_pictures((Picture(Path("x"), (1, 1), ""),))]), "has buckets"),
        (lambda: with_regularization(made("a", 1), made("b", 0)), "without pictures"),
        (lambda: with_regularization(made("a", 1), made("b", 1), weight=0), "weight is 0"),
    ],
)
def test_conflicting_datasets_are_rejected(act, words):
    with pytest.raises(UserError, match=words):
        act()


def test_prior_preservation_shows_each_picture_again_without_its_trigger():
    pictures = made("zorp", 2, 5, trigger="zorp").pictures
    captions = ("Zorp wearing a hat, zorp, on grass", "a zorpling, zorp")
    dataset = made("zorp", 2, 5, trigger="zorp").with_pictures(
        tuple(replace(picture, caption=caption) for picture, caption in zip(pictures, captions, strict=True))
    )
    for word, expected in (
        ("a creature", ["a creature wearing a hat, a creature, on grass", "a zorpling, a creature"]),
        ("", ["wearing a hat, on grass", "a zorpling"]),
    ):
        mixed = with_prior_preservation(dataset, word, weight=0.5, share=2)
        assert mixed.pictures[:2] == dataset.pictures
        prior = mixed.pictures[2:]
        assert [picture.caption for picture in prior] == expected
        assert {(p.is_regularization, p.preserves_prior, p.weight, p.repeats) for p in prior} == {(True, True, 0.5, 10)}


def test_prompts_replace_captions_in_turn():
    dataset = made("a", 2, 6)
    for prompts in (["a dog"], ["a dog", "", "a cat", "a cow"]):
        prior = with_prior_preservation(dataset, prompts=prompts).pictures[2:]
        assert {picture.caption for picture in prior} == {prompt for prompt in prompts if prompt}
        assert {picture.path for picture in prior} == {picture.path for picture in dataset.pictures}
        assert sum(picture.repeats for picture in prior) == 12


def test_copies_for_prior_preservation_are_recognised():
    dataset = made("zorp", 2, trigger="zorp")
    dataset = dataset.with_pictures(tuple(replace(picture, caption="zorp") for picture in dataset.pictures))
    mixed = with_prior_preservation(with_regularization(dataset, made("class", 3)), "a creature")
    assert len(mixed.pictures) == 7
    assert [picture.concept for picture in mixed.without_copies()] == ["zorp"] * 2 + ["class"] * 3


def test_the_root_of_a_concat_is_the_common_parent():
    both = concat([made("set/a", 1), made("set/b", 1)])
    assert both.root == Path("/set")
    assert concat([made("a", 1), Dataset(made("b", 1).pictures)]).root is None


def test_regularization_captions_with_the_trigger_are_refused_where_they_are_joined():
    """kohya_ss #3322."""
    learned, prior = made("a", 2, trigger="zorp"), made("b", 6)
    calling = prior.with_pictures(replace(picture, caption="a Zorp，cat") for picture in prior.pictures)
    with pytest.raises(UserError, match=r"'zorp' is in the caption of 6 regularization pictures \(.*and 3 more\)"):
        with_regularization(learned, calling)
    mixed = prior.with_pictures((calling.pictures[0], *prior.pictures[1:]))
    with pytest.raises(UserError, match=r"of 1 regularization picture \(0\.png\), which would stop it from being"):
        with_regularization(learned, mixed)
    assert with_regularization(replace(learned, trigger=""), calling).pictures
    assert with_regularization(learned, prior).pictures


def test_concat_refuses_regularization_captions_with_the_others_trigger():
    # kohya_ss #3322
    mixed = with_regularization(made("a", 1), made("r", 1).with_pictures(
        (replace(made("r", 1).pictures[0], caption="a blip woman"),)))  # fmt: skip
    with pytest.raises(UserError, match="The trigger 'blip' is in the caption of 1 regularization picture"):
        concat([mixed, replace(made("b", 1), trigger="blip")])
    assert concat([mixed, replace(made("b", 1), trigger="other")]).pictures


@pytest.mark.parametrize(
    ("caption", "word", "preserved"),
    [
        ("zorp，一个女孩", "", "一个女孩"),
        ("红，zorp，蓝", "", "红，蓝"),
        ("a hat, zorp", "", "a hat"),
        ('{"subject": "zorp"}', 'a "big" dog', '{"subject": "a \\"big\\" dog"}'),
    ],
)
def test_captions_are_whole_without_their_trigger(caption, word, preserved):
    dataset = Dataset((Picture(Path("a.png"), (8, 8), caption),), trigger="zorp")
    assert with_prior_preservation(dataset, word).pictures[1].caption == preserved


def test_one_folder_at_two_resolutions():
    """sd-scripts #557."""
    photos = Dataset(
        tuple(Picture(Path(f"/a/{n}.png"), (900, 700), f"zorp {n}", concept="a") for n in range(3)), root=Path("/a"),
        skipped=("b.png cannot be read.",),
    )  # fmt: skip
    small, large = (assign_buckets(photos, BucketConfig(resolution=side)) for side in (512, 768))
    both = concat([small, large])
    assert both.resolutions == (512, 768)
    assert [both.resolution_of(picture) for picture in both.pictures] == [512] * 3 + [768] * 3
    assert both.describe().startswith("3 pictures at the resolutions 512 and 768, 6 per epoch, 3 different captions.")
    assert both.skipped == photos.skipped
    assert both.further_views() == {3, 4, 5}
    nested = concat([assign_buckets(photos, BucketConfig(resolution=256)), both])
    assert nested.resolutions == (256, 512, 768)
    assert with_regularization(small, large).resolutions == (512, 768)
    assert with_prior_preservation(replace(both, trigger="zorp"), "a vase").resolutions == (512, 768)
    # Bucket Images after Concat Datasets is one resolution for all.
    again = assign_buckets(both, BucketConfig(resolution=640))
    assert again.resolutions == (640,) and again.further_views() == set()
    assert photos.resolutions == concat([photos, photos]).resolutions == ()
    # What is left knows its own resolution, also if nothing of the first dataset is.
    assert both.with_pictures(both.pictures[3:]).resolutions == (768,)


def test_a_resolution_is_no_part_of_a_placement():
    """Latents are cached by placement: another resolution field there would encode every dataset again."""
    assert {field.name for field in fields(Placement)} == {"bucket", "scaled", "offset", "fit"}
