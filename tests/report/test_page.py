import pytest

from automl.report.page import page_data, write_page
from automl.types import InputError


def test_names_cannot_break_out_of_the_page(make_run, tmp_path):
    run = make_run(model="</script><b>x")
    (run / "policy.json").write_text(
        '{"schema": "prunepilot/policy", "version": 1, "model_hash": "", "decisions": []}'
    )
    (run / "trials.jsonl").write_text("")
    text = write_page([run], tmp_path / "page.html", script="s.js").read_text()
    assert "</script><b>" not in text


def test_nothing_finished_is_nothing_to_report(make_run):
    run = make_run()
    (run / "result.json").unlink()
    with pytest.raises(InputError, match="no run has finished"):
        page_data([run])
