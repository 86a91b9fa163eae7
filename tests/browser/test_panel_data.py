"""The points of a run as the page keeps them, in a real browser without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lora_workbench.training.run import curve


@pytest.fixture(scope="module")
def modules(chromium: Any) -> Iterator[Any]:
    """A page with data.js in it, without a server."""
    page = chromium.new_page()
    text = (Path(__file__).resolve().parents[2] / "web" / "panel" / "data.js").read_text(encoding="utf-8")
    page.evaluate("""async text => {
      window.data = await import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    }""", text)
    yield page
    page.close()


def test_the_page_thins_as_the_server_does(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = curve.MOST
    monkeypatch.setattr(curve, "MOST", 50)
    steps = [
        {"kind": "step", "step": n, "loss": (n * 7919 % 101) / 100, "rate": n / 1000, "seconds": n,
         "concepts": {"ab"[n % 2]: n / 100}}
        for n in range(1, 334)
    ]  # fmt: skip
    server = curve.Curve()
    for line in steps:
        server.add(line["step"], line["loss"], line["rate"], line["concepts"])
    told = server.columns()
    found = modules.evaluate("""lines => {
      const run = new window.data.Run("x", 50);
      for (const line of lines) run.add(line);
      const again = lines.slice(-20).map(line => run.add(line));
      return { stride: run.curve.stride, again, ...run.curve.columns() };
    }""", steps)
    assert found.pop("counts") == told.pop("counts")
    assert found.pop("again") == [False] * 20, "a line that came twice is drawn twice"
    concepts, theirs = found.pop("concepts"), told.pop("concepts")
    assert {key: pytest.approx(value) for key, value in told.items()} == found
    assert {key: pytest.approx(value) for key, value in theirs.items()} == concepts
    most = modules.evaluate("""() => {
      const run = new window.data.Run("x");
      for (let step = 1; step <= 30000; step++) run.add({ kind: "step", step, loss: 1, rate: 1, seconds: step });
      return run.curve.points.length;
    }""")
    assert allowed / 2 <= most <= allowed


def test_the_loss_shown_is_the_same_after_a_reload(modules: Any) -> None:
    steps = [
        {"kind": "step", "step": n, "loss": (n * 7919 % 101) / 100 + (n > 2900), "rate": 1, "seconds": n,
         "concepts": {"ab"[n % 3 == 0]: n / 100}}
        for n in range(1, 3004)
    ]  # fmt: skip
    server = curve.Curve()
    for line in steps[:-2]:
        server.add(line["step"], line["loss"], line["rate"], line["concepts"])
    live, again, whole = modules.evaluate("""([lines, curve]) => {
      const { Run, smoothed } = window.data;
      const shown = run => {
        const { loss, count, concepts, counts } = run.curve.columns();
        return [[loss, count], [concepts.a, counts.a], [concepts.b, counts.b]].map(
          ([values, counts]) => smoothed(values, 0.99, counts).findLast(value => value !== null));
      };
      const runs = [new Run("x"), new Run("x"), new Run("x", 10000)];
      runs[1].take({ state: "running", curve, last: lines.at(-3), lines: [] });
      for (const run of runs) for (const line of lines) run.add(line);
      return runs.map(shown);
    }""", [steps, server.columns()])
    assert live == pytest.approx(again, rel=1e-9)
    assert live == pytest.approx(whole, rel=0.02), "a thinned curve is smoothed otherwise"
