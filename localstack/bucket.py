"""Makes the bucket for spotckpt, as one would on S3: unfinished multipart uploads are dropped after a day.

May be run again: what is there stays. LocalStack's container runs it when it is ready, `run.sh` does the same.
"""

from __future__ import annotations

import os

import boto3
from botocore.exceptions import ClientError

BUCKET = os.environ.get("SPOTCKPT_BUCKET", "spotckpt")
UNFINISHED = {
    "ID": "abort-unfinished-uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
}


def main() -> None:
    """Creates the bucket unless it is there, and sets its lifecycle rule."""
    client = boto3.client(
        "s3",
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:4566"),
        aws_access_key_id=os.environ.get("AWS_ACCESS_KEY_ID", "test"),
        aws_secret_access_key=os.environ.get("AWS_SECRET_ACCESS_KEY", "test"),
        region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    )
    try:
        client.create_bucket(Bucket=BUCKET)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [UNFINISHED]})
    print(f"bucket s3://{BUCKET} is ready")  # noqa: T201


if __name__ == "__main__":
    main()
