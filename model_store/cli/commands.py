"""The commands `mobilevision models ...`, each of which has a file in this folder.

In: the command line. Out: results on stdout, progress and errors on stderr. Exit codes: 0 done, 1 something failed or
is over its tolerance, 2 a wrong name, option or file. Modules that need torch are imported where they are used, so that
help and `list` answer at once, also where torch is not installed.
"""

from typing import TYPE_CHECKING

import typer

from model_store.cli import add, build, delivery, demo, init, pull, show, sign, verify

if TYPE_CHECKING:
    from model_store.build.expect import ReadPicture
    from model_store.verify.pictures import ToInput


def models_app(*, to_input: "ToInput | None" = None, read_picture: "ReadPicture | None" = None) -> typer.Typer:
    """The application with all commands.

    `to_input` brings a picture to a model's input as the gateway does it. The command line of the server passes it,
    because the build path does not import the gateway. `verify` compares it with the golden file of pictures.
    `read_picture` also tells where the input lies in the picture. `build --expect` needs it.
    """
    app = typer.Typer(help="List, build and verify the models that can be served.", no_args_is_help=True)
    app.command("pull")(pull.pull)
    app.command("demo-train")(demo.train)
    app.command("demo-data")(demo.data)
    app.command("list")(show.list_models)
    app.command("show")(show.show)
    app.command("init")(init.init)
    app.command("build", context_settings={"obj": read_picture})(build.build)
    app.command("add")(add.add)
    app.command("verify")(verify.verify_command(to_input))
    app.command("sign")(sign.sign)
    app.command("verify-signature")(sign.verify_signature)
    app.command("publish")(delivery.publish)
    app.command("sync")(delivery.sync)
    return app
