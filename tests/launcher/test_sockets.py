"""Sockets have short paths, whatever the data folder's."""

import os
import shutil
import socket
from pathlib import Path

import pytest
from pytest_django import Settings

from mlebench_web import sockets
from runs import grader_process, validation


def test_the_usual_place_is_in_the_data_folder() -> None:
    assert sockets.folder_for(Path("/data")) == Path("/data/s")


def test_every_socket_fits_into_the_longest_usual_place(tmp_path: Path, settings: Settings) -> None:
    room = sockets.LONGEST_FOLDER - len(os.fsencode(tmp_path)) - len("/") - len("/s")
    data = tmp_path / ("d" * room)
    settings.SOCKETS_DIR = sockets.folder_for(data)

    assert data / "s" == settings.SOCKETS_DIR
    paths = [
        validation.control_path(),
        settings.SOCKETS_DIR / "9999999999" / "v",
        settings.SOCKETS_DIR / f"{grader_process.PRIVATE}12345678" / "g",
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))


def test_a_deep_data_folder_gets_a_short_private_one_always_the_same(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)

    folder = sockets.folder_for(deep)

    try:
        assert folder == sockets.folder_for(deep)
        assert folder != sockets.folder_for(tmp_path / ("deer" * 30))
        assert folder.stat().st_mode & 0o777 == 0o700
        longest = folder / "9999999999"
        longest.mkdir()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(longest / "v"))
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(sockets.folder_for(tmp_path / ("deer" * 30)))


def test_a_short_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)
    folder = sockets.folder_for(deep)
    folder.chmod(0o777)

    try:
        with pytest.raises(PermissionError, match="SOCKETS_DIR"):
            sockets.folder_for(deep)
    finally:
        shutil.rmtree(folder)


def test_a_short_folder_goes_with_the_product_but_not_with_an_agents_in_it(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)
    folder = sockets.folder_for(deep)
    (folder / "7").mkdir()
    with socket.socket(socket.AF_UNIX) as another_worker:
        another_worker.bind(str(folder / "service"))
        another_worker.listen()

        sockets.tidy(folder, deep)
        (folder / "7").rmdir()
        sockets.tidy(folder, deep)
        assert (folder / "service").exists()

    sockets.tidy(folder, deep)
    assert not folder.exists()


def test_the_usual_place_stays(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "broker").touch()

    sockets.tidy(sockets.folder_for(tmp_path), tmp_path)

    assert (tmp_path / "s" / "broker").exists()


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)
    folder = sockets.folder_for(deep)
    folder.rmdir()
    os.symlink(tmp_path, folder)

    try:
        with pytest.raises(PermissionError):
            sockets.folder_for(deep)
    finally:
        folder.unlink()
