"""The progress bar also says what happens while there are no events."""

from distinf.report import Events, Progress, progress
from tests.waiting import until


def test_it_says_that_the_run_waits_for_workers(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.01)
    words, shown = ["waiting for workers: 1 of 2"], []

    def drawn(wanted):
        shown.append(capsys.readouterr().err)
        return wanted("".join(shown))

    with Progress(Events(), 3, busy=lambda: (0, 1), waiting=lambda: words[0]):
        until(lambda: drawn(lambda text: "workers busy 0/1, waiting for workers: 1 of 2" in text))
        words[0] = ""
        shown.clear()
        until(lambda: drawn(lambda text: "workers busy 0/1" in text and "waiting" not in text))
