"""Which notices are told, and when again."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotckpt.agent.board import Board
from spotckpt.deadline import SYSTEM_CLOCK
from spotckpt.notices.notice import Notice


def test_a_notice_that_cannot_be_kept_counts_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    board = Board(tmp_path / "no-such-directory/notices.json", lambda notice: None)
    notice = board.inject("terminate", in_s=60)
    assert board.final() == notice
    assert "the next agent will not know" in caplog.text


def test_a_notice_is_told_again_if_telling_failed(tmp_path: Path) -> None:
    told: list[str] = []

    def tell(notice: Notice) -> None:
        told.append(notice.id)
        if len(told) == 1:
            raise RuntimeError("no thread could be started")

    board = Board(tmp_path / "notices.json", tell)
    notices = [Notice("spot", "terminate", SYSTEM_CLOCK.now() + 90, name) for name in ("one", "two")]
    with pytest.raises(RuntimeError):
        board.see("ec2", notices)
    for _ in range(3):
        board.see("ec2", notices)
    assert told == ["one", "one", "two"]
