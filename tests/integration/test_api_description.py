"""The API does what its description says, and withstands what it does not say."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from web_town import Town, first_gpu, lived, pages

from daemon.policy import Mode
from daemon.settings import Settings
from daemon.web.api import READS, WRITES
from simulator.faults import Fault

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "token").write_text("open-sesame\n")
    return Settings.model_validate({"web": {"token_file": str(tmp_path / "token")}})


@pytest.fixture
def town() -> Iterator[Town]:
    found = lived(0.25, Mode.APPROVE, Fault("xid79", first_gpu(), 600.0, 3600.0))
    yield found
    found.daemon.record.close()


async def test_schemathesis_finds_nothing(town: Town, settings: Settings, tmp_path: Path) -> None:
    async with pages(town, settings) as client:
        url = str(client._base_url).rstrip("/")
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/api/v1/openapi.json",
            "-H", "Authorization: Bearer open-sesame", "--max-examples", "40", "--seed", "1", "--no-color",
            "--phases", "examples,coverage,fuzzing",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
        )  # fmt: skip
        said, _ = await process.communicate()

    assert process.returncode == 0, said.decode()[-6000:]
    passed = re.search(r"(\d+) generated, \1 passed", said.decode())
    assert passed is not None
    assert int(passed.group(1)) > 500


async def test_the_description_names_every_path(town: Town) -> None:
    async with pages(town) as client, client.get("/api/v1/openapi.json") as answer:
        paths = json.loads(await answer.text())["paths"]

    served = {p for p in READS} | {
        p.replace("{word:" + words + "}", w)
        for p in WRITES
        for words in [p.partition("{word:")[2].partition("}")[0]]
        for w in (words.split("|") if words else [""])
    }
    assert {p.removeprefix("/api/v1") for p in paths} == served
