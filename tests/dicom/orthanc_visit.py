"""Store a series in an Orthanc, ask for it in every way, and print what came back, as JSON.

Usage: `python -m tests.dicom.orthanc_visit FOLDER SERIES PLUGIN`, in a network of its own: Orthanc listens everywhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from app.dicom.destination import Destination
from app.dicom.sending import send_files
from tests.dicom.servers import free_port, pacs

_START_SECONDS = 60


def main() -> None:
    folder, series, plugin = (Path(a) for a in sys.argv[1:4])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    http, dicom = free_port(), free_port()
    files = sorted(series.iterdir())
    with pacs() as other:
        assert other.address is not None
        settings = {
            "Name": "archive", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(plugin)], "HttpPort": http, "DicomPort": dicom, "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False, "DicomAlwaysAllowGet": True, "DicomAlwaysAllowMove": True,
            "DicomModalities": {"other": ["PACS", "127.0.0.1", other.address.port],
                                "tetrad": ["TETRAD", "127.0.0.1", 1]},
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        log = (folder / "orthanc.log").open("wb")
        with subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log) as server:
            try:
                print(json.dumps(_visit(f"http://127.0.0.1:{http}", dicom, files, other)))
            finally:
                server.terminate()


def _visit(web: str, port: int, files: list[Path], other: Any) -> dict[str, Any]:
    _wait_for(f"{web}/system")
    orthanc = Destination("ORTHANC", "127.0.0.1", port)
    first = pydicom.dcmread(files[0])
    counts = []
    for _ in range(2):
        send_files(files, orthanc)
        counts.append(json.loads(_get(f"{web}/statistics"))["CountInstances"])
    asked = Dataset()
    asked.QueryRetrieveLevel = "SERIES"
    asked.StudyInstanceUID, asked.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
    found, fetched = _query_and_get(port, asked)
    _move(port, asked)
    place = f"{web}/dicom-web/studies/{first.StudyInstanceUID}/series"
    (listed,) = json.loads(_get(place, "application/dicom+json"))
    picture = _get(f"{place}/{first.SeriesInstanceUID}/instances/{first.SOPInstanceUID}/rendered", "image/png")
    return {
        "counts": counts,
        "description": found.SeriesDescription,
        "got": _content(fetched),
        "moved": _content(other.images),
        "listed": listed["0008103E"]["Value"][0],
        "picture": picture[:4].hex(),
    }


def _content(datasets: list[Any]) -> dict[str, Any]:
    """Pixels and the mark of each image, by its UID."""
    return {str(d.SOPInstanceUID): [d.PixelData.hex(), str(d.get((0x0008, 0x001C)).value)] for d in datasets}


def _query_and_get(port: int, asked: Dataset) -> tuple[Any, list[Any]]:
    from pynetdicom import AE, build_role, evt
    from pynetdicom.sop_class import (
        MRImageStorage,
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
    )

    entity, fetched = AE(ae_title="TETRAD"), []

    def take(event: Any) -> int:
        fetched.append(event.dataset)
        return 0

    for syntax in (
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        MRImageStorage,
    ):
        entity.add_requested_context(syntax)
    association = entity.associate("127.0.0.1", port, ae_title="ORTHANC", evt_handlers=[(evt.EVT_C_STORE, take)],
                                   ext_neg=[build_role(MRImageStorage, scp_role=True)])  # fmt: skip
    wanted = Dataset()
    wanted.update(asked)
    wanted.SeriesDescription = ""
    answers = association.send_c_find(wanted, StudyRootQueryRetrieveInformationModelFind)
    (found,) = [answer for _, answer in answers if answer is not None]
    for _ in association.send_c_get(asked, StudyRootQueryRetrieveInformationModelGet):
        pass
    association.release()
    return found, fetched


def _move(port: int, asked: Dataset) -> None:
    from pynetdicom import AE
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove

    entity = AE(ae_title="TETRAD")
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
    association = entity.associate("127.0.0.1", port, ae_title="ORTHANC")
    for status, _ in association.send_c_move(asked, "PACS", StudyRootQueryRetrieveInformationModelMove):
        assert status.Status in (0x0000, 0xFF00), status
    association.release()


def _get(address: str, kind: str = "application/json") -> bytes:
    request = urllib.request.Request(address, headers={"Accept": kind})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
    return content


def _wait_for(address: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            _get(address)
        except OSError:
            if time.monotonic() > end:
                raise
            threading.Event().wait(0.2)
        else:
            return


if __name__ == "__main__":
    main()
