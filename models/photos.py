"""Put labelled photos into a folder, for `xaicompile evaluate models/efficientnet-lite0.onnx`.

They are taken from packages, compared with their SHA-256 one by one, and are never kept in the repository: 20 photos of
ImageNet classes from foolbox, whose file names end with the label, and 5 from scikit-image and scikit-learn, which are
labelled here. `labels.csv` beside them has a line `file name,label` for each. Needs pip.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOOLBOX = {  # number and label: SHA-256
    "00_243": "28b7b933c8028c6e20bf74a86a709eda42ce99f14c8742cb657cb386f08a4c9d",
    "01_559": "5f03b0c74dff01b5b4195d0beabcae2a625a406e6917957ab9c455b5b7dea6d6",
    "02_438": "ccef0734c1a65549c6cb5adb0f5d9b1c0b2e2104aba50a9e5f9202dc6d4532ed",
    "03_990": "c7f0b2f1e9ee39d8f900759e8983afa2e4a2d7de090060e8bb947f6e90cace5f",
    "04_949": "a7f62f3c1d214de4718c7253871ab38209283249e131faf65b8f2b7fdc970669",
    "05_853": "8a449436c61da867528b1f4efaf8ae832ab9c9201705eae0d3af1353fbdac131",
    "06_609": "fb061102a4e58b3ed942bb2a4f9542e1e1acdc8f225ef95498e93889290e192f",
    "07_609": "2c297ad1e5c4804a647e9b34bc02ee2fc348b05a4d49050d170fb61c948efa5c",
    "08_915": "c6a3411a3987799f0de45adc142f00ca412c3e14073c635e2adfae1f3913180c",
    "09_455": "ace3716b60ac5843269b270e17020e4f8138440cd30ef3487f7d6e54da9745a4",
    "10_541": "f325c71d9f4290ee45e99bd7ad42f4bffe513b1450ad21e7bd61c7cb137395d9",
    "11_630": "892dff58fc528fe63d2df0c783aa3eca2342637798578ce01763fbc0553eda01",
    "12_741": "6c256e17545b25bbf2e06cf6513ff48d049583569515ac4d4c3a52aea804a529",
    "13_471": "52ed0e738b90d27afcabc3e92c81ae637f160c2d9f75b93a65211005ab5dcd81",
    "14_129": "ad9371d813bf24b0365ee2f78f28c08718ee7c5975f060caa16c3f264e828139",
    "15_99": "4b588649cd835d4c65521727ebee03d9621baff1f54d3e8a53a26b53d983ec2e",
    "16_251": "ce3440a3b7beb6ca3009817504c44d39fa789e7c2f70a2eef7e2f9cc9a87b129",
    "17_22": "b432341845620e9cfd67d848c4783c32dd6eaddad45513866b17180d2b09fcf5",
    "18_317": "b9412f92f0b1c3faede45b55a44940977daa744f2040118d0538cf597fca785d",
    "19_305": "e1f58f00e2e47ce930d7ecab0e46a78316054f68c10d0742e87c1cc092324556",
}
OTHERS = {  # file: label (tiger cat, espresso, missile, tripod, palace), SHA-256
    "skimage/data/chelsea.png": (282, "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    "skimage/data/coffee.png": (967, "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    "skimage/data/rocket.jpg": (657, "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    "skimage/data/camera.png": (872, "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
    "sklearn/datasets/images/china.jpg": (698, "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
}
PHOTOS = {
    **{f"foolbox/data/imagenet_{k}.jpg": (int(k.split("_")[1]), sha) for k, sha in FOOLBOX.items()},
    **OTHERS,
}
PACKAGES = {"foolbox": "foolbox==3.3.4", "skimage": "scikit-image==0.26.0", "sklearn": "scikit-learn==1.9.1"}


def download(packages: list[str], folder: str) -> list[Path]:
    """Fetch the wheels of packages with pip, without what they depend on."""
    if importlib.util.find_spec("pip") is None:
        raise SystemExit("photos: this Python has no pip; run `python -m ensurepip` first")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", folder, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or ["no reason given"]
        raise SystemExit(f"photos: pip could not download {', '.join(packages)}: {reason[-1]}")
    return sorted(Path(folder).glob("*.whl"))


def photos() -> dict[str, bytes]:
    """Each of PHOTOS by its path in its package, checked."""
    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for wheel in download(list(PACKAGES.values()), folder):
            with zipfile.ZipFile(wheel) as archive:
                found |= {name: archive.read(name) for name in archive.namelist() if name in PHOTOS}
    for name, (_, expected) in PHOTOS.items():
        seen = hashlib.sha256(found[name]).hexdigest() if name in found else "none: it is not there"
        if seen != expected:
            raise SystemExit(f"photos: {name} has SHA-256 {seen}, expected {expected}")
    return found


def main() -> None:
    """Write the photos and their labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=HERE / ".cache" / "photos", help="folder (default: %(default)s)")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for name, data in photos().items():
        (options.to / Path(name).name).write_bytes(data)
    with (options.to / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows((Path(name).name, label) for name, (label, _) in PHOTOS.items())
    print(f"{options.to}: {len(PHOTOS)} photos and labels.csv")


if __name__ == "__main__":
    main()
