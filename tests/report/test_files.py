"""The file of a report: what training changes in it between two validations."""

from __future__ import annotations

from seghiero_core.report.files import REPORT_NAME, update_status, write_report
from seghiero_core.report.page import read_page
from seghiero_core.version import __version__
from support.report_cases import written


def test_a_page_tells_that_its_run_was_stopped_or_goes_on(tmp_path):
    page = tmp_path / REPORT_NAME
    document = written("one image") | {"seghiero": __version__}
    document["runs"] = [document["runs"][0] | {"status": "training"}]
    write_report(page, document)

    def update(*words, **options):
        update_status(tmp_path, *words, **options)
        return read_page(page.read_text())

    assert update("training", only_from="interrupted")["created"] == document["created"]  # it isn't written again
    changed = update("interrupted")
    run, before = changed["runs"][0], document["runs"][0]
    assert run == before | {"status": "interrupted", "curves": {"steps": [], "validations": []}}
    assert 'data-status="interrupted"' in page.read_text()
    assert update("training", only_from="interrupted")["runs"][0]["status"] == "training"


def test_what_is_no_page_of_this_version_stays(tmp_path):
    update_status(tmp_path, "interrupted")
    assert not [*tmp_path.iterdir()]
    page = tmp_path / REPORT_NAME
    write_report(page, written("one image") | {"seghiero": "0.0.1"})
    for text in (
        page.read_text(),
        "<html>mine</html>",
        '<script type="application/json" id="document">{}</script>',
        '<script type="application/json" id="document">{</script>',
    ):
        page.write_text(text)
        update_status(tmp_path, "interrupted")
        assert page.read_text() == text
