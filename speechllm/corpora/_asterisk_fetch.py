"""Download of the Asterisk core sounds, as Debian packages or upstream's tarballs.

Every file is compared with its pinned SHA-256 before it is opened. Root is not needed.
Tarballs are kept next to the folder until it is complete, so that a re-run resumes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from speechllm.corpora._debian import (
    MIRROR,
    Package,
    Unavailable,
    apt_download,
    unpack_deb,
)
from speechllm.corpora._download import download
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, atomic_directory
from speechllm.utils.io import unpack_tar

LANGUAGES = ("en", "es", "fr", "it", "ru")
VERSION = "1.6.1"
SOUNDS = FolderKind("folder of Asterisk sounds")
_DEBIAN_VERSION = "1.6.1-1"
# Upstream's tarballs; Debian's source package has the same files.
_UPSTREAM = "https://downloads.asterisk.org/pub/telephony/sounds/releases"
_SOURCE = "asterisk-core-sounds"
_DEBIAN = f"{MIRROR}/a/{_SOURCE}"
_TARBALLS = (
    f"{_UPSTREAM}/asterisk-core-sounds-{{lang}}-g722-{VERSION}.tar.gz",
    f"{_DEBIAN}/asterisk-core-sounds_{VERSION}.orig-{{lang}}-g722.tar.gz",
)
_TARBALL_SHA256 = {
    "en": "59891033e764d9dffc5ccdd78e845a1c8ea6bed0b434128bb0199c63ef591770",
    "es": "3c474f73cc4f65478b3cf05ab0c5da19c8ce408699f61491f6aafba450cb540a",
    "fr": "7ff3ca96bbb295a6458e6eb1ff92690d9a5d0db0b4ddfa2c488237e4d251efbe",
    "it": "44a7fd7b067ff7f71df7fec31f9a8c960e13d35ca30c31878913c4020bfc00b6",
    "ru": "fde2a071b811a081219138693d6813d122d91c2c3423936274b110b97645b61b",
}
_PACKAGE_SHA256 = {
    "asterisk-core-sounds-{lang}": {
        "en": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
        "es": "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
        "fr": "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
        "it": "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b",
        "ru": "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab",
    },
    "asterisk-core-sounds-{lang}-g722": {
        "en": "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
        "es": "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
        "fr": "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
        "it": "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016",
        "ru": "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b",
    },
}
_PACKAGES = sorted(
    Package(template.format(lang=language), _DEBIAN_VERSION, digest, _SOURCE)
    for template, digests in _PACKAGE_SHA256.items()
    for language, digest in digests.items()
)


def fetch_asterisk(download_dir: str | Path) -> Path:
    """Return the folder with the unpacked sounds; download them once (54 MB).

    Raises:
        UserError: no source is available, or a file has a wrong checksum.
    """
    folder = Path(download_dir) / f"asterisk-core-sounds-{VERSION}"
    if folder.is_dir():
        return folder
    reasons = []
    for fetch in (_from_debian, _from_tarballs):
        try:
            fetch(folder)
            return folder
        except Unavailable as reason:
            reasons.append(str(reason))
    raise UserError(
        "the Asterisk sounds cannot be downloaded: "
        + "; ".join(reasons)
        + f". Unpack the Debian packages {_PACKAGES[0].name}, {_PACKAGES[1].name}, … "
        f"or the tarballs of {_UPSTREAM} (one folder per language) on a machine with "
        "network access and give the folder as --asterisk_dir"
    )


def _from_debian(folder: Path) -> None:
    """Download and unpack the Debian packages."""
    with atomic_directory(folder, SOUNDS) as new:
        debs = new / "packages"
        debs.mkdir()
        apt_download(_PACKAGES, debs)  # 54 MB
        for package in _PACKAGES:
            unpack_deb(debs / package.file_name, new)
        shutil.rmtree(debs)


def _from_tarballs(folder: Path) -> None:
    """Download and unpack upstream's tarballs, one folder per language."""
    tarballs = {language: _tarball(language, folder.parent) for language in LANGUAGES}
    with atomic_directory(folder, SOUNDS) as new:
        for language, tarball in tarballs.items():
            unpack_tar(tarball, new / language, "r:gz")
    for tarball in tarballs.values():
        tarball.unlink()


def _tarball(language: str, folder: Path) -> Path:
    """Download one tarball from the first address that has it."""
    target = folder / f"{_SOURCE}-{language}-g722-{VERSION}.tar.gz"
    problems = []
    for template in _TARBALLS:
        url = template.format(lang=language)
        try:
            return download(url, target, sha256=_TARBALL_SHA256[language])
        except UserError as error:
            print(error, flush=True)
            problems.append(str(error))
    raise Unavailable("; ".join(problems))
