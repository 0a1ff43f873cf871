"""An S3 server on loopback: moto's, one request at a time, for it checks and puts in two steps."""

import threading
from contextlib import contextmanager

import pytest
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server


def one_at_a_time(app):
    turn = threading.Lock()

    def serve(environ, start):
        with turn:
            return list(app(environ, start))

    return serve


@contextmanager
def served(app):
    """Serve a WSGI application; its URL."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


@contextmanager
def s3(name, change=lambda app: app):
    """Serve a bucket; ``change`` wraps the server's application."""
    app = one_at_a_time(DomainDispatcherApplication(create_backend_app))
    with served(change(app)) as url, pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "user",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(key, value)
        import s3fs

        # A file system is kept for its arguments; its server is in the environment.
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
        yield f"s3://{name}"
        s3fs.S3FileSystem.clear_instance_cache()
