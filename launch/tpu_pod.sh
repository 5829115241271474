#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, from a machine with gcloud:
#
#   launch/tpu_pod.sh NAME ZONE setup                     # once: the project and its packages on every host
#   launch/tpu_pod.sh NAME ZONE train --config=configs/luvit.py:size=full,mesh=fsdp --workdir=/shared/runs
#   launch/tpu_pod.sh NAME ZONE stop                      # SIGTERM: training saves its state and ends
#
# NAME is that of `gcloud compute tpus tpu-vm create`. The arguments after "train" are those of launch/train.py. The
# work directory must be a folder that all hosts see and in which folders can be renamed: Filestore (NFS), or a bucket
# with a hierarchical namespace mounted by Cloud Storage FUSE.
#
# Variables: PROJECT (gcloud's default), SOURCE (git address or gs://.../repgls.tar.gz that the hosts can read, for
# setup), DISK (folder on the hosts' own disks that shards are copied to, default /tmp/repgls), BUILD (gs:// address of
# a complete build of the data).
#
# A training goes on when the connection is lost: it runs under nohup, its output in ~/repgls.log of every host; process
# 0 speaks for all. The same command again goes on from the last checkpoint.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
[[ $# -ge 3 ]] || usage
name=$1 zone=$2 what=$3
shift 3

gcloud_tpu() { gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" ${PROJECT:+--project="$PROJECT"} "${@:2}"; }
everywhere() { gcloud_tpu ssh --worker=all --command="$1"; }

case "$what" in
  setup)
    : "${SOURCE:?git address or gs:// archive of the project}"
    case "$SOURCE" in
      gs://*) get="gsutil -q cp $(printf %q "$SOURCE") - | tar xz -C ~/repgls --strip-components=1" ;;
      *) get="git clone -q --depth=1 $(printf %q "$SOURCE") ~/repgls" ;;
    esac
    everywhere "set -eo pipefail; rm -rf ~/repgls; mkdir ~/repgls; $get; cd ~/repgls
      if python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'; then python3 -m venv .venv
      else python3 -m pip install -q --user uv; python3 -m uv venv -q --seed --python=3.12 .venv; fi
      . .venv/bin/activate
      pip install -q -r requirements.txt; pip install -q -e '.[tpu]' gcsfs
      python -c 'import jax; jax.distributed.initialize(); print(jax.process_index(), jax.device_count(), \"devices\")'"
    ;;
  train)
    # All hosts must join: their number is checked, so that a slice never becomes as many single jobs.
    hosts=$(gcloud_tpu describe --format='json(networkEndpoints)' | grep -c '"ipAddress"')
    arguments=$(printf '%q ' --processes="$hosts" --disk="${DISK:-/tmp/repgls}" ${BUILD:+--build="$BUILD"} "$@")
    echo "starting $hosts hosts: launch/train.py $arguments"
    everywhere "set -e; cd ~/repgls; . .venv/bin/activate
      if [ -f ~/repgls.pid ] && kill -0 \$(cat ~/repgls.pid) 2>/dev/null; then echo 'runs already' >&2; exit 1; fi
      nohup python launch/train.py $arguments > ~/repgls.log 2>&1 & echo \$! > ~/repgls.pid
      tail --pid=\$! -n +1 -f ~/repgls.log; wait \$!"
    ;;
  stop) everywhere 'kill -TERM $(cat ~/repgls.pid)' ;;
  *) usage ;;
esac
