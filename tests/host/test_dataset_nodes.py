"""The nodes over datasets, in a real server: what they hand on reaches the training."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open
from support.captioners import KNOWN, tiny_blip
from support.prompts import defaults, node
from support.server import ComfyServer, PromptError
from support.taggers import tagger


def colors(server: ComfyServer, folder: str, colors_: dict[str, str]) -> str:
    """A folder of plain pictures below the server's input; returns its name."""
    path = server.base / "input" / folder / "2_thing"
    path.mkdir(parents=True, exist_ok=True)
    for name, color in colors_.items():
        Image.new("RGB", (256, 256), color).save(path / f"{name}.png")
    return folder


def text_of(server: ComfyServer, number: str) -> str:
    """What a node said last."""
    said = [event["data"] for event in server.events if event["type"] == "progress_text"]
    return [data["text"] for data in said if data["node"] == number][-1]


def trained(server: ComfyServer, chain: dict[str, Any], last: str, name: str) -> dict[str, str]:
    """Train an epoch on what a chain of nodes makes and save it; returns the file's metadata."""
    trainer = defaults(server, "LoRATrainer") | {"name": name, "epochs": 1, "rank": 2}
    prompt = {
        **chain,
        "bucket": node("BucketImages", dataset=[last, 0], **defaults(server, "BucketImages") | {"resolution": 128}),
        "model": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "train": node("LoRATrainer", **trainer, model=["model", 0], clip=["model", 1], vae=["model", 2],
                      dataset=["bucket", 0]),
        "save": node("SaveLoRA", lora=["train", 0], name=name, precision="fp16", format="kohya", overwrite=True),
    }  # fmt: skip
    entry = server.run(prompt, timeout=300)
    with safe_open(Path(entry["outputs"]["save"]["text"][0]), framework="pt") as file:
        return file.metadata()


def caption(server: ComfyServer, source: str, captioner: str, **settings: Any) -> dict[str, Any]:
    inputs = {**defaults(server, "AutoCaption"), **settings, "captioner": captioner}
    return node("AutoCaption", dataset=[source, 0], **inputs)


def load(folder: str, trigger: str = "") -> dict[str, Any]:
    return node("LoadDataset", folder=folder, trigger=trigger, background="#ffffff")


def test_tags_reach_the_training(server):
    folder = colors(server, "tagged", {"a": "#ff0000", "b": "#0000ff"})
    chain = {"load": load(folder), "auto": caption(server, "load", "tiny_tagger")}
    metadata = trained(server, chain, "auto", "tagged")
    assert json.loads(metadata["ss_tag_frequency"]) == {
        "2_thing": {"red hair": 1, "zorp": 1, "^_^": 2, "blue sea": 1}}  # fmt: skip
    assert text_of(server, "auto") == "2 captioned."


def test_sentences_reach_the_training(server):
    tiny_blip(server.base / "models" / "LLM" / "tiny_blip")
    folder = colors(server, "described", dict(zip("ab", KNOWN, strict=True)))
    chain = {"load": load(folder), "auto": caption(server, "load", "tiny_blip")}
    metadata = trained(server, chain, "auto", "described")
    assert set(json.loads(metadata["ss_tag_frequency"])["2_thing"]) == set(KNOWN.values())


@pytest.mark.long
def test_captioners_of_extra_model_paths_are_listed_and_used(host_path, tmp_path):
    tiny_blip(tmp_path / "mine" / "writers" / "somewhere_else")
    tagger(tmp_path / "mine" / "taggers" / "old_tagger")
    config = tmp_path / "extra.yaml"
    config.write_text(f"mine:\n  base_path: '{tmp_path.as_posix()}/mine'\n  LLM: writers\n  wd14_tagger: taggers\n")
    # Read when it starts, so it needs a server of its own.
    with ComfyServer(host_path, tmp_path / "base", "--extra-model-paths-config", str(config)) as server:
        inputs = server.object_info("LoRAWorkbench_AutoCaption")["LoRAWorkbench_AutoCaption"]["input"]
        assert inputs["required"]["captioner"][1]["options"] == ["somewhere_else", "old_tagger"]
        folder = colors(server, "described", dict(zip("ab", KNOWN, strict=True)))
        server.run({
            "load": load(folder),
            "auto": caption(server, "load", "somewhere_else", write="new .txt files"),
            "bucket": node("BucketImages", dataset=["auto", 0], **defaults(server, "BucketImages")),
            "show": node("PreviewImage", images=["bucket", 1]),
        })  # fmt: skip
        written = (server.base / "input" / folder / "2_thing").glob("*.txt")
        assert [file.read_text(encoding="utf-8").strip() for file in sorted(written)] == list(KNOWN.values())


def test_operations_policy_and_prior_reach_the_training(server):
    folder = colors(server, "chained", {"a": "#ff0000", "b": "#0000ff"})
    kept = colors(server, "kept", {str(n): f"#00{n}000" for n in range(5)})
    chain = {
        "load": load(folder, "zorp"),
        "auto": caption(server, "load", "tiny_tagger", exclude="zorp"),
        "edit": node("CaptionOperation", dataset=["auto", 0], operation="remove tags", text="^_^", replacement="",
                     share=0.6, keep_tokens=1, seed=0),
        "prior": load(kept),
        "mix": node("RegularizationImages", dataset=["edit", 0], regularization=["prior", 0], weight=0.5, share=1.0,
                    target="as the pictures are"),
        "own": node("PriorPreservation", dataset=["mix", 0], class_word="a thing", prompts="", weight=0.5, share=1.0),
        "live": node("LiveCaptions", dataset=["own", 0], shuffle=True, keep_tokens=1, tag_dropout=0.5,
                     caption_dropout=0.1, wildcards=True),
    }  # fmt: skip
    metadata = trained(server, chain, "live", "chained")
    assert (metadata["ss_shuffle_caption"], metadata["ss_keep_tokens"]) == ("True", "1")
    # Two pictures twice, and as many to keep, in either way.
    assert (metadata["ss_num_train_images"], metadata["ss_num_reg_images"]) == ("4", "8")
    assert metadata["ss_steps"] == "12"
    assert "2 of 2 captions changed" in text_of(server, "edit")
    assert "2 pictures to learn, 5 for regularization" in text_of(server, "mix")
    assert 'Preserved, for example: "a thing, ' in text_of(server, "own")
    assert text_of(server, "live").startswith("Examples:\nzorp")


def test_a_kohya_project_is_learned_with_its_regularization_pictures(server):
    project = server.base / "input" / "project"
    for name in ("img/2_zorp thing", "reg/1_thing", "model/sample"):
        (project / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (256, 256), f"#0{number}0000").save(project / name / f"{number}.png")
    (project / "img/2_zorp thing/0.txt").write_bytes("zorp，一个女孩，蓝色头发，站在海边".encode("gbk"))
    (project / "img/2_zorp thing/1.heif.zip").write_bytes(b"")
    Image.new("L", (256, 256), 255).save(project / "img/2_zorp thing/0-masklabel.png")
    chain = {
        "load": load("project", "zorp"),
        "mix": node("RegularizationImages", dataset=["load", 0], regularization=["load", 1], weight=1.0, share=1.0,
                    target="as the pictures are"),
    }  # fmt: skip
    metadata = trained(server, chain, "mix", "project")
    assert (metadata["ss_num_train_images"], metadata["ss_num_reg_images"]) == ("4", "4")
    assert json.loads(metadata["ss_tag_frequency"])["2_zorp thing"] == {
        "zorp": 1, "一个女孩": 1, "蓝色头发": 1, "站在海边": 1, "zorp thing": 1}  # fmt: skip
    assert text_of(server, "load").splitlines()[1:] == [
        "1 caption was read as GBK (0.txt). If it looks wrong, save it as UTF-8.",
        "project is a kohya project: 2 pictures to learn, 2 pictures for regularization at the second output, left "
        "out: model.",
        "1 mask, used if Loss Mask follows.",
        "Repeats: 2_zorp thing × 2, 1_thing × 1.",
        "Not read: 1 .zip (1.heif.zip).",
    ]


def test_a_placeholder_is_named(server):
    with pytest.raises(PromptError, match="Choose your folder: my_character is a placeholder"):
        trained(server, {"load": load("my_character")}, "load", "none")


def test_two_concepts_in_one(server):
    first = colors(server, "first", {"a": "#ff0000"})
    second = colors(server, "second", {"b": "#0000ff", "c": "#00ff00"})
    both = node("ConcatDatasets", first=["one", 0], second=["two", 0], first_weight=2.0, second_weight=0.5)
    chain = {"one": load(first), "two": load(second), "both": both}
    metadata = trained(server, chain, "both", "concat")
    assert metadata["ss_num_train_images"] == "6"
    # Two folders of one name are two concepts, and each has its loss in the file and on the trainer.
    concepts = {"first/2_thing", "second/2_thing"}
    losses = json.loads(metadata["lora_workbench.concept_losses"])
    assert set(losses) == concepts and all(loss > 0 for loss in losses.values())
    assert all(f"{name} {losses[name]:.4f}" in text_of(server, "train") for name in concepts)
    assert set(json.loads(metadata["ss_dataset_dirs"])) == concepts


def test_the_doctor_shows_says_and_leaves_out(server):
    folder = colors(server, "sick", {"a": "#ff0000", "b": "#ff0000"})
    report = {
        "load": load(folder),
        "report": node("DatasetReport", dataset=["load", 0], leave_out_the_worst=True, clip=["model", 1]),
        "model": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "show": node("PreviewAny", source=["report", 2]),
    }
    entry = server.run(report)
    (said,) = entry["outputs"]["show"]["text"]
    assert "near-duplicates" in said and "2_thing/a.png = 2_thing/b.png" in said
    assert text_of(server, "report").endswith("the worst first. Left out: 1 picture.")
    found = entry["outputs"]["report"]["lora_workbench_report"]
    assert ["2_thing/a.png = 2_thing/b.png"] in [finding["files"] for finding in found]
    shown = entry["outputs"]["report"]["images"][0]
    with Image.open(io.BytesIO(server.view(**shown))) as sheet:
        assert sheet.width == 1200 and len(sheet.convert("RGB").getcolors(1 << 20)) > 20
    chain = {key: report[key] for key in ("load", "report", "model")}
    assert trained(server, chain, "report", "doctored")["ss_num_train_images"] == "2"


def test_a_captioner_that_is_not_there_is_named(server):
    folder = colors(server, "tagged", {"a": "#ff0000", "b": "#0000ff"})
    chain = {"load": load(folder), "auto": caption(server, "load", "gone"),
             "bucket": node("BucketImages", dataset=["auto", 0], **defaults(server, "BucketImages")),
             "show": node("PreviewImage", images=["bucket", 1])}  # fmt: skip
    with pytest.raises(PromptError, match="captioner"):
        server.run(chain)


def test_masks_reach_the_training_and_the_sheet(server):
    folder = colors(server, "masked", {"a": "#00ff00", "b": "#00ff00"})
    mask = Image.new("L", (256, 256))
    mask.paste(255, (0, 0, 128, 256))
    mask.save(server.base / "input" / folder / "2_thing" / "a_mask.png")
    chain = {
        "load": load(folder),
        "mask": node("LossMask", dataset=["load", 0], source="mask file, else transparency", outside=0.0),
    }
    assert trained(server, chain, "mask", "masked")["ss_num_train_images"] == "4"
    assert text_of(server, "mask") == "1 picture masked. 1 picture without a mask, trained whole."
    shown = server.run({
        **chain,
        "sheet": node("BucketImages", dataset=["mask", 0], **defaults(server, "BucketImages") | {"resolution": 128}),
        "save": node("PreviewImage", images=["sheet", 1]),
    })["outputs"]["save"]["images"][0]  # fmt: skip
    with Image.open(io.BytesIO(server.view(**shown))) as sheet:
        found = sheet.convert("RGB").getcolors(1 << 20)
    assert any(count > 1000 and red > 80 and green < 150 for count, (red, green, _) in found), "nothing under red"
    no = {**chain, "mask": node("LossMask", dataset=["load", 0], source="transparency", outside=0.0)}
    with pytest.raises(PromptError, match="No picture has a mask"):
        trained(server, no, "mask", "masked")
    # From the graph: one for all.
    chain["solid"] = node("SolidMask", value=1.0, width=64, height=64)
    chain["mask"] = node("LossMask", dataset=["load", 0], mask=["solid", 0], source="mask file", outside=0.5)
    trained(server, chain, "mask", "masked")
    assert text_of(server, "mask") == "2 pictures masked."


def test_edits_of_the_gallery_are_used_and_only_what_depends_on_them_runs_again(server):
    folder = colors(server, "edited", {"a": "#ff0000", "b": "#0000ff", "c": "#00ff00"})
    trainer = defaults(server, "LoRATrainer") | {"name": "edited", "epochs": 1, "rank": 2}
    prompt = {
        "load": load(folder, "zorp"),
        "edit": node("EditCaptions", dataset=["load", 0]),
        "bucket": node("BucketImages", dataset=["edit", 0], **defaults(server, "BucketImages") | {"resolution": 128}),
        "model": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "train": node("LoRATrainer", **trainer, model=["model", 0], clip=["model", 1], vae=["model", 2],
                      dataset=["bucket", 0]),
        "save": node("SaveLoRA", lora=["train", 0], name="edited", precision="fp16", format="kohya", overwrite=True),
    }  # fmt: skip

    def post(path: str, body: Any) -> Any:
        return json.loads(server.request(path, body))

    def ran() -> tuple[set[str], dict[str, Any]]:
        entry = server.run(prompt, timeout=300)
        cached = {n for kind, data in entry["status"]["messages"] if kind == "execution_cached" for n in data["nodes"]}
        return set(prompt) - cached, entry

    def tags() -> dict[str, int]:
        with safe_open(Path(entry["outputs"]["save"]["text"][0]), framework="pt") as file:
            return json.loads(file.metadata()["ss_tag_frequency"])["2_thing"]

    nodes, entry = ran()
    assert nodes | {"model"} == set(prompt)  # which another test may have loaded
    (key,) = entry["outputs"]["edit"]["lora_workbench_gallery"]
    assert tags() == {"zorp": 3, "thing": 3}
    assert ran()[0] == set(), "something ran again though nothing was edited"

    base = f"/lora_workbench/datasets/{key}"
    page = server.get(f"{base}?start=0&count=10")
    assert [picture["name"] for picture in page["pictures"]] == [f"2_thing/{n}.png" for n in "abc"]
    edits = [
        {"name": "2_thing/a.png", "revision": 0, "caption": "zorp, red"},
        {"name": "2_thing/c.png", "revision": 0, "excluded": True},
    ]
    post(f"{base}/edits", {"edits": edits})
    nodes, entry = ran()
    assert nodes == {"edit", "bucket", "train", "save"}
    assert tags() == {"zorp": 2, "red": 1, "thing": 1}
    assert "2 pictures, 1 edited, 1 left out" in server.log
    assert ran()[0] == set()

    # An edit that is taken back leaves nothing to do; one in another dataset neither.
    for caption in ("zorp, crimson", "zorp, red"):
        revision = server.get(f"{base}?start=0&count=1")["pictures"][0]["revision"]
        post(f"{base}/edits", {"edits": [{**edits[0], "caption": caption, "revision": revision}]})
    assert ran()[0] == set()
    assert not list((server.base / "input" / folder).rglob("*.txt")), "the folder is the person's own"

    answer = post(f"{base}/text_files", {"over": False})
    assert answer == {"written": 2, "problems": []}
    assert (server.base / "input" / folder / "2_thing" / "a.txt").read_text(encoding="utf-8") == "zorp, red\n"


def test_a_captioner_is_fetched_only_by_name_and_a_clip_must_write(server):
    folder = colors(server, "fetched", {"a": "#ff0000"})
    chain = {"load": load(folder), "auto": caption(server, "load", "tiny_tagger", download="../tiny_tagger")}
    with pytest.raises(PromptError, match="is not a Hugging Face name"):
        trained(server, chain, "auto", "fetched")
    # What is there already is used without a network.
    tiny_blip(server.base / "models" / "LLM" / "someone" / "blip")
    chain["auto"] = caption(server, "load", "gone meanwhile", download="someone/blip")
    metadata = trained(server, chain, "auto", "fetched")
    assert len(json.loads(metadata["ss_tag_frequency"])["2_thing"]) == 1
    chain["auto"]["inputs"]["download"] = ""
    with pytest.raises(PromptError, match="There is no captioner 'gone meanwhile'"):
        trained(server, chain, "auto", "fetched")
    chain["auto"]["inputs"]["clip"] = ["model", 1]
    with pytest.raises(PromptError, match="This CLIP (cannot write text|cannot see pictures)"):
        trained(server, chain, "auto", "fetched")


def test_captions_of_json_lines_and_parentheses_in_a_graph(server):
    # ai-toolkit PR #732, OneTrainer #1508, musubi-tuner #834, sd-scripts PR #975; sd-scripts PR #336, kohya_ss #1725.
    json_ = '{\n  "subject": "a zorp (seen at 10:30), {red|blue}"\n}'
    words = {"a": json_, "b": "zorp\na {red|blue} hat", "c": "zorp (x)"}
    folder = colors(server, "written", dict(zip(words, ("#ff0000", "#00ff00", "#0000ff"), strict=True)))
    for name, caption_ in words.items():
        (server.base / "input" / folder / "2_thing" / f"{name}.txt").write_text(caption_, encoding="utf-8")
    off = {"shuffle": False, "keep_tokens": 1, "tag_dropout": 0.0, "caption_dropout": 0.0}
    edit = {"text": "x", "replacement": "", "share": 0.6, "keep_tokens": 1, "seed": 0}

    def report(source: str) -> dict[str, Any]:
        return node("DatasetReport", dataset=[source, 0], leave_out_the_worst=False)

    prompt = {
        "load": load(folder),
        "tags": node("CaptionOperation", dataset=["load", 0], operation="remove tags", **edit),
        "escape": node("CaptionOperation", dataset=["tags", 0], operation="escape parentheses", **edit),
        "plain": report("load"), "escaped": report("escape"),
        "first": node("PreviewAny", source=["plain", 2]), "second": node("PreviewAny", source=["escaped", 2]),
    }  # fmt: skip
    entry = server.run(prompt)
    said, after = (entry["outputs"][name]["text"][0] for name in ("first", "second"))
    assert "is trained as 'seen at 10' at weight 30" in said and "prompt weights" not in after
    assert "1 JSON caption left unchanged." in text_of(server, "tags")
    assert text_of(server, "escape").startswith("2 of 3 captions changed.")

    def drawn(source: str, **switches: bool) -> set[str]:
        live = node("LiveCaptions", dataset=[source, 0], **off, **switches)
        server.run({"load": load(folder), "two": load(f"{folder}_two"), "live": live, "report": report("live")})
        return set(text_of(server, "live").removeprefix("Examples:\n").split("\n"))

    # The node shows what it draws from the first caption. A prompt from before draw_one_line existed lacks that input.
    two = colors(server, f"{folder}_two", {"b": "#ff0000"})
    (server.base / "input" / two / "2_thing" / "b.txt").write_text(words["b"], encoding="utf-8")
    assert drawn("load", wildcards=True) == {"{", '  "subject": "a zorp (seen at 10:30), {red|blue}"', "}"}
    assert drawn("two", wildcards=True) == {"zorp", "a red hat", "a blue hat"}
    assert drawn("two", wildcards=False) == {"zorp a {red|blue} hat"}
    assert drawn("two", wildcards=True, draw_one_line=False) == {"zorp a red hat", "zorp a blue hat"}
    assert drawn("two", wildcards=False, draw_one_line=True) == {"zorp", "a {red|blue} hat"}
