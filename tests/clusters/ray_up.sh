#!/bin/bash
# sudo tests/clusters/ray_up.sh
# `heliostat cluster up clusters/on-premises.yaml` on three hosts that are namespaces of this machine: each has its own
# network, processes, file system (an overlay that is gone afterwards) and OpenSSH server, at the addresses of the file.
# Then a job is submitted through SSH, and the cluster is ended. About four minutes on two cores, most of it Ray's.
# Needs Linux, root for the namespaces, `make setup`, and: apt-get install openssh-server rsync. Changes nothing outside.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
environment=$(realpath "${HELIOSTAT_VENV:-$here/.venv}")

if [[ ${1:-} != inside ]]; then
    for tool in unshare ip ssh sshd rsync ssh-keygen; do
        PATH=$PATH:/usr/sbin command -v $tool > /dev/null || { echo "$tool is missing: see the head of this file"; exit 2; }
    done
    [[ $(id -u) == 0 ]] || { echo "only root can make namespaces with addresses"; exit 2; }
    exec unshare --net --mount --pid --fork --kill-child --mount-proc "$0" inside
fi
export PATH=$PATH:/usr/sbin

site=$(mktemp -d)
mount -t tmpfs -o mode=755 site "$site"
mkdir "$site/shared"
ssh-keygen -q -t ed25519 -N "" -f "$site/key"
python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$site/token"
ip link set lo up
ip link add site type bridge
ip addr add 10.0.0.1/24 dev site
ip link set site up
ip route add default dev site

# A root file system: this machine's, with changes of its own.
root_of() {
    local root=$site/$1/root
    mkdir -p "$site/$1"/{upper,work,root}
    mount -t overlay -o "lowerdir=/,upperdir=$site/$1/upper,workdir=$site/$1/work" "$1" "$root"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o size=1g shm "$root/dev/shm"
    mount -t tmpfs -o mode=1777 tmp "$root/tmp"
    mkdir -p "$root"/{shared,run/sshd,etc/heliostat,etc/ssh,root/.ssh}
    mount --bind "$site/shared" "$root/shared"
    ln -sfn "$environment" "$root/opt/heliostat"
    ln -sfn /opt/heliostat/bin/ray "$root/usr/local/bin/ray"
    install -m 600 "$site/token" "$root/etc/heliostat/auth_token"
    install -m 600 "$site/key.pub" "$root/root/.ssh/authorized_keys"
    install -m 600 "$site/key" "$root/root/.ssh/id_ed25519"
    rm -rf "$root/root/.ray"
    chmod 700 "$root/root/.ssh"
    grep -q '^sshd:' "$root/etc/passwd" || echo 'sshd:x:997:65534::/run/sshd:/usr/sbin/nologin' >> "$root/etc/passwd"
}

host() {
    local name=$1 address=$2
    root_of "$name"
    ssh-keygen -q -t ed25519 -N "" -f "$site/$name/host_key"
    cp "$site/$name/host_key" "$site/$name/root/etc/ssh/"
    unshare --net --pid --uts --mount --fork --kill-child bash -c "
        hostname $name
        mount -t proc proc $site/$name/root/proc
        until ip link show dev eth0 > /dev/null 2>&1; do sleep 0.1; done
        ip link set lo up; ip addr add $address/24 dev eth0; ip link set eth0 up
        ip route add default via 10.0.0.1  # by which Ray finds out its own address; nothing is there
        exec chroot $site/$name/root $(command -v sshd) -D -e -f /dev/null -h /etc/ssh/host_key -o UsePAM=no -o PidFile=none \
            -o PermitRootLogin=prohibit-password -o ListenAddress=$address -o SetEnv=PATH=$PATH" > "$site/$name/log" 2>&1 &
    local keeper=$! inside
    until inside=$(pgrep --parent $keeper); do sleep 0.1; done
    ip link add "to-$name" type veth peer name eth0 netns "$inside"
    ip link set "to-$name" master site up
}

host head 10.0.0.10
host one 10.0.0.11
host two 10.0.0.12
root_of desk
mount -t proc proc "$site/desk/root/proc"
sed -e 's/ssh_user: ray .*/ssh_user: root/' -e 's/ssh_user: ray$/ssh_user: root/' "$here/clusters/on-premises.yaml" > "$site/desk/root/tmp/on-premises.yaml"
diff "$here/clusters/on-premises.yaml" "$site/desk/root/tmp/on-premises.yaml" || true

cat > "$site/desk/root/tmp/work.sh" << END
set -euo pipefail
cd $here
export PATH=/opt/heliostat/bin:\$PATH PYTHONPATH=$here/platform:$here/algorithms OMP_NUM_THREADS=1 COLUMNS=120
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/etc/heliostat/auth_token
for address in 10.0.0.10 10.0.0.11 10.0.0.12; do
    timeout 60 bash -c "until ssh -o StrictHostKeyChecking=no -o LogLevel=ERROR root@\$address hostname; do sleep 0.5; done"
done
heliostat="python -m heliostat"
\$heliostat cluster up /tmp/on-premises.yaml --yes
for attempt in \$(seq 60); do
    \$heliostat cluster status /tmp/on-premises.yaml > /tmp/status 2>&1 || true
    grep -q '0.0/4.0 CPU' /tmp/status && break
    sleep 3
done
cat /tmp/status
grep -q '0.0/4.0 CPU' /tmp/status
\$heliostat submit jobs/representation/simclr-digits.yaml --cluster /tmp/on-premises.yaml --name over-ssh \
    optimization.epochs=null optimization.steps=20 optimization.schedule.warmup_epochs=0 evaluation=[] \
    checkpoint.every_epochs=null checkpoint.every_steps=10 resources.workers=4
ls /shared/runs/over-ssh/checkpoints
\$heliostat jobs list --cluster /tmp/on-premises.yaml
\$heliostat cluster down /tmp/on-premises.yaml --yes
# The head's Ray is stopped; that of the others ends when it has missed the head for a minute.
for address in 10.0.0.10 10.0.0.11 10.0.0.12; do
    for attempt in \$(seq 60); do
        found=0  # pgrep says 0 where there are some, 1 where there are none; anything else is no answer
        ssh -o StrictHostKeyChecking=no -o LogLevel=ERROR root@\$address "pgrep 'raylet|gcs'" || found=\$?
        [[ \$found == 0 ]] || break
        sleep 3
    done
    [[ \$found == 1 ]] || { echo "whether Ray has ended on \$address: pgrep says \$found"; exit 1; }
done
END
chroot "$site/desk/root" bash /tmp/work.sh && echo "ray up, submit and ray down: all of it worked" || {
    tail -n 20 "$site"/{head,one,two}/log
    exit 1
}
