"""The command `edje demo`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Demo:
    """Show the search page over built-in scenes, with the model that ships with the package.

    Needs no files and no network. `make demo` of a checkout trains such a model.

    Examples:
        edje demo
        edje demo --port 8080 --open
    """

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every one of this machine's."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    open: bool = False
    """Open the page in a browser, too."""

    def run(self) -> None:
        from edje_jax.cli.demo_page import demo_page

        demo_page(self.host, self.port, self.open)
