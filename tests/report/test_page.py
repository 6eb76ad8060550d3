import json
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aigtool.analysis.figures import write_analysis, write_comparison
from aigtool.analysis.pictures import image_reader
from aigtool.errors import UserError
from aigtool.flops import NetworkFlops
from aigtool.report.curves import sweep_chart
from aigtool.report.headlines import Headline, headlines, measured_networks
from aigtool.report.page import render, write_report
from aigtool.report.pictures import album, inference_graph
from aigtool.report.robustness import accuracy_charts, gate_charts
from aigtool.report.sources import Results, find_results
from tests.report.made import (
    SCRIPT,
    made_trace,
    tables_of,
    without_gates,
    write_all,
    write_attack,
    write_bench,
    write_run,
    write_sweep,
)

UNMEASURED = "aigtool evaluate dense.safetensors --out TRACE measures the other; "
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"


def headlines_of(results: Results) -> list[Headline]:
    return headlines(results, measured_networks(results.traces, results.analyses))


def test_headlines_stand_gated_beside_dense_with_what_they_rest_on(tmp_path: Path) -> None:
    write_all(tmp_path)
    accuracy, compute, seconds, robustness = headlines_of(find_results([tmp_path]))
    gated, dense = accuracy.sides
    assert (gated.value, dense.value) == ("80.0 %", "100.0 %")
    assert gated.detail == "± 6.3; 32 of 40 right; 95 % interval 65.2 to 89.5 %"
    networks = f"{tmp_path.name}/traces/gated beside {tmp_path.name}/traces/dense; made"
    assert accuracy.about == f"-20.0 ± 6.3 points, paired image by image; {networks}"
    assert compute.about == f"multiply-accumulates; {networks}"
    assert compute.sides[1].value == "2"
    assert float(compute.sides[0].value) < 2
    assert [side.value for side in seconds.sides] == ["8", "10"]
    served = "1.25 times as fast at 60.0 % of gated blocks executed; engine skip, cpu, float32, "
    assert seconds.about.startswith(served)
    assert [side.value for side in robustness.sides] == ["40.0 %", "30.0 %"]
    assert robustness.title.endswith("8/255")
    behind = "gates straight-through; behind JPEG, of which the attacker does not know: "
    behind += "quality 75, gated 38.0 %, dense 28.0 %; quality 50, gated 37.0 %, dense 27.0 %; "
    assert robustness.about.startswith(behind)
    assert "1 of 2 sanity checks in doubt: gradients may be hidden" in robustness.about


def test_what_was_not_measured_is_said_not_to_be() -> None:
    nothing = headlines_of(Results())
    assert [side.value for h in nothing for side in h.sides] == ["not measured"] * 8
    trace = made_trace(3, 4, 5)
    accuracy, compute, seconds, _ = headlines_of(Results(traces={"a": trace}))
    assert accuracy.sides[0].value == "80.0 %"
    assert accuracy.sides[1].value == seconds.sides[0].value == "not measured"
    assert compute.sides[1].value == "2"  # counted with the gated network


def test_a_difference_is_to_the_reference_beside_which_it_stands() -> None:
    gated = made_trace(4, 6, 10)
    everything = np.ones_like(gated.executed)
    opened = replace(gated, policy="open", executed=everything)
    traces = {"a-open": opened, "gated": gated, "z-dense": without_gates(gated)}
    accuracy, *_ = headlines_of(Results(traces=traces))
    assert [(s.network, s.value) for s in accuracy.sides] == [
        *(("gated", "80.0 %"), ("dense", "100.0 %"))
    ]
    assert accuracy.about == (
        "-20.0 ± 6.3 points, paired image by image; gated beside z-dense; made"
    )
    page = render(Results(traces=traces), "page", "command")
    assert page.count("-20.0 ± 6.3 to z-dense") == 2  # of open gates and of gated
    assert page.count("<h2>Gates of") == page.count("<h2>Gates of gated") == 1
    del traces["z-dense"]
    accuracy, *_ = headlines_of(Results(traces=traces))
    assert (accuracy.sides[1].network, accuracy.sides[1].value) == ("open gates", "80.0 %")
    assert accuracy.about.startswith("+0.0 ± 0.0 points")
    [accuracy, *_] = headlines_of(Results(traces={"a-open": opened}))
    assert [s.value for s in accuracy.sides] == ["not measured", "80.0 %"]
    assert (accuracy.sides[1].network, accuracy.about) == ("open gates", "a-open; made")


def test_of_several_the_one_of_most_images_is_told(tmp_path: Path) -> None:
    few, many = made_trace(3, 4, 5, source="few"), made_trace(3, 4, 9, source="many")
    accuracy, *_ = headlines_of(Results(traces={"few": few, "many": many}))
    assert accuracy.about.endswith("many; many")
    write_attack(tmp_path / "few")
    write_attack(tmp_path / "many")
    file = tmp_path / "many" / "attack.json"
    told = json.loads(file.read_text())
    for row in told["rows"]:
        row["images"] *= 2
    file.write_text(json.dumps({**told, "data": "many"}))
    *_, robustness = headlines_of(find_results([tmp_path]))
    assert robustness.about.endswith("many; of 2 attacks the one on most images")


def test_a_network_of_another_size_is_not_the_one_before_gating() -> None:
    gated = made_trace(4, 6, 10)
    other = replace(without_gates(gated), flops=NetworkFlops(3.0, 1, ()))
    accuracy, *_ = headlines_of(Results(traces={"gated": gated, "other": other}))
    assert (accuracy.sides[1].value, accuracy.about) == ("not measured", f"{UNMEASURED}gated; made")
    page = render(Results(traces={"gated": gated, "other": other}), "page", "command")
    assert "to other" not in page


def test_traces_of_other_images_are_not_compared() -> None:
    trace = made_trace(3, 4, 5)
    renamed = replace(trace, images=trace.images.assign(file="other.png"))
    others = replace(made_trace(3, 4, 5), source="others"), made_trace(3, 4, 6), renamed
    for other in map(without_gates, others):
        [accuracy, *_] = headlines_of(Results(traces={"a": trace, "b": other}))
        assert accuracy.sides[0].value == "80.0 %"
        assert accuracy.sides[1].value == "not measured"


def test_an_attack_and_a_run_have_headlines_too(tmp_path: Path) -> None:
    write_attack(tmp_path / "attack", reference="open")
    write_bench(tmp_path / "bench")
    accuracy, compute, *_ = headlines_of(find_results([tmp_path]))
    assert [(s.network, s.value) for s in accuracy.sides] == [
        *(("gated", "90.0 %"), ("open", "92.0 %"))
    ]
    assert compute.sides[0].detail == "60.0 % of dense; 60.0 % of gated blocks executed"
    write_run(tmp_path / "run")
    accuracy, compute, *_ = headlines_of(find_results([tmp_path / "run"]))
    assert accuracy.sides[0].value == "82.0 %"
    assert accuracy.about == f"{UNMEASURED}run, epoch 2, validation images"
    assert compute.sides[0].value == "not measured"
    assert compute.sides[0].detail.startswith("65.0 % of dense")


def test_an_attack_has_curves_costs_checks_and_pictures(tmp_path: Path) -> None:
    write_attack(tmp_path / "attack")
    results = find_results([tmp_path])
    [attack] = results.attacks.values()
    charts = {chart.title: chart for chart in accuracy_charts(attack)}
    behind = [f"FGSM, JPEG {quality}, attacker unaware" for quality in (75, 50)]
    assert [*charts] == ["FGSM, no defence", *behind]
    gated, dense = charts["FGSM, no defence"].series
    assert (gated.name, dense.name) == ("gated, gates straight-through", "dense")
    assert gated.said[1].endswith("8/255: 40.0 % (30.9 to 49.8 %), 40 of 100 right")
    assert "doubt" in charts[behind[1]].series[0].said[0]
    rates, same = gate_charts(attack)
    assert rates.title == "What is executed under FGSM, 8/255, gates straight-through"
    assert [series.name for series in rates.series] == ["clean", "attacked"]
    assert [series.name for series in same.series] == ["all (100 images)"]
    text = render(results, "page", "command")
    assert "clean ones take 60.0 % of the dense network&#39;s GFLOPs" in text
    assert "<td>70.0 %</td><td>90.0 %</td><td>25.0 %</td><td>100.0 %</td>" in text
    assert "<td>passed</td>" in text
    assert "read this figure with doubt: gradients may be hidden" in text
    assert 'src="data:image/png;base64,' in text


def test_the_headline_is_of_the_strongest_attack_and_the_worst_gates(tmp_path: Path) -> None:
    file = tmp_path / "attack" / "attack.json"
    write_attack(file.parent)
    told = json.loads(file.read_text())
    for gates, lost in (("straight-through", 10), ("worst", 20)):
        for row in [row for row in told["rows"] if row["attack"] == "fgsm"]:
            is_gated = row["network"] == "gated"
            stronger = {"attack": "pgd", "steps": 20, "correct": row["correct"] - lost}
            told["rows"].append(row | stronger | {"gate_gradient": gates if is_gated else None})
    told["checks"] = []
    file.write_text(json.dumps(told))
    *_, robustness = headlines_of(find_results([tmp_path]))
    assert robustness.title == "Accuracy under PGD-20, 8/255"
    assert robustness.about.startswith("gates worst; ")
    assert "sanity" not in robustness.about
    assert robustness.sides[0].detail.startswith("± 4.0; 20 of 100 right")


def test_the_page_escapes_what_users_named(tmp_path: Path) -> None:
    write_all(tmp_path / SCRIPT.replace("/", "-"))
    written = write_report([next(tmp_path.iterdir())], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert len(written) == 6
    assert SCRIPT not in text
    assert SCRIPT.replace("/", "-") not in text
    assert ESCAPED in text
    assert "\\u003cscript\\u003ealert(1)" in text
    for path in written:
        assert str(path).replace("<", "&lt;").replace(">", "&gt;") in text
    assert "aigtool report " in text


def test_findings_stand_beside_what_the_gates_were_trained_for(tmp_path: Path) -> None:
    tables = tables_of(made_trace(3, 4, 5))
    groups = {"between": 0.3, "within": 0.1, "ratio": 3.0}
    groups |= {"p": 0.005, "least_p": 0.005, "labelings": 200}
    tables.found["found_groups"] = {"members": [["class 0"], ["class 1", "class 2"]], **groups}
    for kind, told in (("class", "trained to tell classes apart"), ("image", "were not trained")):
        write_run(tmp_path / kind, information_about=kind)
        results = find_results([tmp_path / kind])
        results.analyses["look"] = tables
        page = render(results, "page", "command")
        assert page.count(told) == 1
        assert "3.00 times as far" in page
        assert "whether classes differ, not whether they form groups" in page
        assert f"The gates of {kind} were" in page
    (tmp_path / "image" / "config.yaml").unlink()
    results = find_results([tmp_path / "image"])
    results.analyses["look"] = tables
    for unknown in (results, Results(analyses={"look": tables})):
        assert "is not known here" in render(unknown, "page", "command")


def test_a_trace_that_was_analysed_is_shown_once(tmp_path: Path) -> None:
    trace = made_trace(3, 4, 5)
    trace.save(tmp_path / "a.parquet")
    write_analysis(trace, tmp_path / "analysis", formats=[])
    write_comparison({"a": trace, SCRIPT: without_gates(trace)}, tmp_path / "both", formats=[])
    page = render(find_results([tmp_path]), "page", "command")
    assert page.count("<h2>Gates of") == 1
    assert f"compared in {tmp_path.name}/both" in page
    assert "+20.0 ± 10.3 to a<" in page
    assert ESCAPED in page


@pytest.mark.parametrize("images", ["there", "gone", "never"])
def test_pictures_are_embedded_and_said_to_be_gone_where_they_are(
    images: str, tmp_path: Path
) -> None:
    folder = tmp_path / "my images"
    (folder / "val").mkdir(parents=True)
    for number in range(10):
        Image.new("RGB", (300, 200), (20 * number, 0, 0)).save(folder / "val" / f"{number}.png")
    trace = made_trace(2, 4, 5, source="no/such val" if images == "never" else f"{folder} val")
    trace.images["file"] = "val/" + trace.images["file"]
    if images == "gone":
        (folder / "val" / "3.png").unlink()
    shown = album(tables_of(trace))
    kinds = chain.from_iterable(kinds.values() for kinds in shown.classes.values())
    pictures = [image.picture for image in chain.from_iterable(kinds)]
    assert len(pictures) == 10
    if images == "there":
        assert all(str(picture).startswith("data:image/webp;base64,") for picture in pictures)
        assert max(len(str(picture)) for picture in pictures) < 4000
        assert not shown.gone
        return
    assert pictures.count(None) == (1 if images == "gone" else 10)
    assert ("3.png cannot be read" if images == "gone" else "no such folder here") in shown.gone
    told = "1 of 10 pictures is gone: " if images == "gone" else "No pictures: "
    assert told in render(Results(analyses={"a": tables_of(trace)}), "page", "")


@pytest.mark.parametrize("file", ["../secret.png", "{folder}/secret.png"])
def test_no_picture_is_read_from_beside_its_folder(file: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    read = image_reader(f"{tmp_path / 'data'} val")
    with pytest.raises(UserError, match="expected a file in that folder"):
        read(file.format(folder=tmp_path))


def test_a_sweep_tells_its_seeds(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep")
    [sweep] = find_results([tmp_path]).sweeps.values()
    said = [text for series in sweep_chart(sweep).series for text in series.said]
    assert sum("seed 0:" in text for text in said) == 2


def test_an_inference_graph_has_a_square_a_block() -> None:
    gates = [f"layer{1 + n // 50}.{n}" for n in range(150)]
    graph = inference_graph(gates, gates[::2])
    assert (graph.width, graph.height) == (180, 90)  # rows of 18, 18 and 14 in each of 3 stages
    assert graph.executed.count("M") == graph.skipped.count("M") == 75


@pytest.mark.parametrize("rate", [0, 1])
def test_gates_that_are_all_shut_or_all_open(rate: int) -> None:
    trace = made_trace(3, 4, 5)
    trace = replace(trace, executed=np.full(trace.executed.shape, bool(rate)))
    assert "Gates of a" in render(Results(analyses={"a": tables_of(trace)}), "page", "")


def test_classes_without_an_image_or_a_name() -> None:
    trace = made_trace(3, 4, 5)
    absent = replace(trace, classes=(*(trace.classes or ()), "absent"))
    nameless = replace(trace, classes=None)
    for shown, names in ((absent, trace.classes), (nameless, ("0", "1", "2"))):
        page = render(Results(analyses={"a": tables_of(shown)}), "page", "")
        assert f'"rows":{json.dumps(names, separators=(",", ":"))}' in page


def test_nothing_is_left_of_a_page_that_failed(tmp_path: Path) -> None:
    write_all(tmp_path / "all")
    shutil.copy(tmp_path / "all" / "run" / "config.yaml", tmp_path / "all" / "e.parquet")
    with pytest.raises(ValueError, match="no whole execution trace"):
        write_report([tmp_path / "all"], tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["all"]
