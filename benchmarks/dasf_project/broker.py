"""The smallest Django project that is a broker of DASF."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
SECRET_KEY = "benchmark"  # noqa: S105
DEBUG = False
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "guardian",
    "channels",
    "dasf_broker",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": HERE / "broker.sqlite3"}}
AUTHENTICATION_BACKENDS = ["broker.Everybody"]
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
ROOT_URLCONF = "broker"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DASF_STORE_MESSAGES = "disabled"
urlpatterns = []


class Everybody:
    """Whoever asks may do everything: rights are not what is measured."""

    def authenticate(self, request, **credentials):
        return None

    def has_perm(self, user, perm, obj=None):
        return True


def serve(port):
    import os

    os.environ["DJANGO_SETTINGS_MODULE"] = "broker"
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from channels.routing import URLRouter
    from daphne.server import Server
    from dasf_broker.routing import websocket_urlpatterns

    Server(
        URLRouter(websocket_urlpatterns),
        endpoints=[f"tcp:port={port}:interface=127.0.0.1"],
        signal_handlers=False,
        websocket_max_message_size=0,
        websocket_max_frame_size=0,
    ).run()


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    serve(sys.argv[1])
