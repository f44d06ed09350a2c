"""A real S3 server on loopback, for tests."""

import json
import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import boto3
from moto import settings
from moto.core import ActionAuthenticatorMixin
from moto.server import ThreadedMotoServer

_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@contextmanager
def serve() -> Iterator[str]:
    """Start a server with a `bucket` that takes any key, such as this process has then; yields its host and port."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "{}:{}".format(*server.get_host_and_port())
    # There is no metadata service to ask for keys, and asking takes its time.
    with mock.patch.dict(os.environ, _KEYS | {"AWS_EC2_METADATA_DISABLED": "true"}):
        urllib.request.urlopen(urllib.request.Request(f"http://{address}/bucket", method="PUT")).close()
        yield address
    server.stop()


@contextmanager
def keys_needed(address: str) -> Iterator[dict[str, str]]:
    """For a while the server takes no key but the one in these variables."""
    iam = boto3.client("iam", region_name="us-east-1", endpoint_url=f"http://{address}")
    iam.create_user(UserName="us")
    policy = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}
    iam.put_user_policy(UserName="us", PolicyName="all", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="us")["AccessKey"]
    with mock.patch.object(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0):
        ActionAuthenticatorMixin.request_count = 0
        yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    iam.close()


def uri(address: str, folder: str) -> str:
    """A folder of the server's bucket."""
    return f"s3://bucket/{folder}?scheme=http&endpoint_override={address}"
