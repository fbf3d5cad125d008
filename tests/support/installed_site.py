"""A site's files as its people write them, and what it takes to join with them."""

import json
from dataclasses import dataclass
from pathlib import Path

from client.enrolment import collect, join
from client.identity_folder import IdentityFolder
from coordinator.service.servers import Servers
from core.config_files import load_config
from core.messages import encode
from core.site_config import SiteConfig
from tests.support.command import cloister
from tests.support.federation import FEDERATION, write_records
from tests.support.joining import Consortium

# The name that the consortium of the tests has.
INSTALLED = FEDERATION.replace('name = "tiny"', 'name = "clinic"')

SITE = """
[site]
name = "north"
num_examples = 40
federation = "federation.toml"

[data]
format = "jsonl"
path = "records.jsonl"
columns = {{ text = "text", label = "label" }}

[policy]
max_epsilon = 1000.0
allowed_tasks = ["{task}"]
"""


@dataclass(frozen=True)
class InstalledSite:
    """The folder of the site ``north``."""

    folder: Path

    @property
    def file(self) -> Path:
        """The site's file."""
        return self.folder / "site.toml"

    @property
    def config(self) -> SiteConfig:
        """What it says."""
        return load_config(SiteConfig, self.file)

    @property
    def identity(self) -> IdentityFolder:
        """Its identity."""
        return IdentityFolder(self.config.identity)

    def task(self) -> str:
        """The hash of the installed task."""
        done = cloister("client", "task", "--config", self.file, "--json")
        assert done.returncode == 0, done.stderr
        task: str = json.loads(done.stdout)["task"]
        return task

    def replace(self, old: str, new: str) -> None:
        """Changes the site's file."""
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))

    def invitation(self, consortium: Consortium, servers: Servers) -> Path:
        """The admin's file."""
        path = self.folder / "invitation.json"
        path.write_bytes(encode(consortium.invitation(servers)))
        return path

    def join(self, consortium: Consortium, servers: Servers) -> None:
        """From an invitation to a certificate."""
        invitation = consortium.invitation(servers)
        join(self.config, self.identity, invitation, lambda _: None)
        consortium.approve()
        assert collect(self.identity, invitation, now=consortium.now())


def install_site(folder: Path) -> InstalledSite:
    """Writes the files; the site approves the installed task and has not joined."""
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "records.jsonl", seed=0)
    (folder / "federation.toml").write_text(INSTALLED)
    site = InstalledSite(folder)
    site.file.write_text(SITE.format(task="0" * 64))
    site.replace("0" * 64, site.task())
    return site
