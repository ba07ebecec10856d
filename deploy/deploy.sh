#!/usr/bin/env bash
# Deploys the registry of this checkout to a host, with PostgreSQL, Prometheus and Grafana, and closes
# its port to all but the host's LAN and containers. Run it again to complete or upgrade a deployment:
# each step does only what is missing and prints what it did.
set -euo pipefail

readonly PORT=9205 SERVICES=(db registry prometheus grafana)
readonly SHIPPED=(agent db graph migrations requirements pyproject.toml README.md Dockerfile .dockerignore
  deploy/compose.yaml deploy/prometheus deploy/grafana)

usage() {
  cat <<'END'
deploy.sh [OPTION]... HOST

HOST is a destination of ssh: a name from its configuration, or user@address. The user must be root
or have sudo without a password, and the host needs docker with compose, and ufw.

  --dry-run          print what would be done, and change nothing
  --address ADDRESS  address of the host on which the registry listens [the one that ssh reached, if
                     it is private, else 127.0.0.1]
  --lan NETWORK      network that may connect, besides the host's containers, e.g. 10.1.0.0/16;
                     repeatable [the network of that address]
  --directory PATH   directory of the deployment on the host [/opt/node-registry-compose]

Environment variables:
  DEPLOY_SSH         command to run instead of `ssh`, e.g. "ssh -p 2222"
END
}

fail() {
  printf 'deploy: %s\n' "$*" >&2
  exit 1
}

# The functions down to apply_release run on the host, where `declare -f` brings them. Each step prints
# what it did, or that it kept what was there.

log_step() { printf '%-8s %s\n' "$1" "$2"; }

quietly() { "$@" >/dev/null; }

# run_step DONE WHAT COMMAND...: runs the command and logs the step; a dry run only logs it.
run_step() {
  local done=$1 what=$2
  shift 2
  if [[ $DRY_RUN == yes ]]; then
    log_step "would" "$what"
  else
    "$@"
    log_step "$done" "$what"
  fi
}

compose() {
  docker compose --env-file "$DIRECTORY/compose.env" --file "$DIRECTORY/release/deploy/compose.yaml" "$@"
}

is_private() {
  [[ $1 =~ ^(10\.|192\.168\.|172\.(1[6-9]|2[0-9]|3[01])\.|100\.(6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7])\.) ]]
}

check_host() {
  local tool reached lans
  for tool in docker ufw ip; do
    command -v "$tool" >/dev/null || fail "the host has no $tool"
  done
  docker compose version >/dev/null 2>&1 || fail "docker on the host has no compose: install the compose plugin"
  docker info >/dev/null 2>&1 || fail "docker on the host is not running"
  if [[ -z $ADDRESS ]]; then
    reached=$(cut -d' ' -f3 <<<"${SSH_CONNECTION:-}")
    ADDRESS=127.0.0.1
    if is_private "$reached"; then ADDRESS=$reached; fi
  fi
  if [[ -z $(ip -4 -o address show to "$ADDRESS") ]]; then
    fail "the host has no address $ADDRESS"
  fi
  read -ra lans <<<"$LANS"
  if [[ $ADDRESS != 127.* ]] && ((${#lans[@]} == 0)); then
    readarray -t lans < <(ip -4 route show scope link src "$ADDRESS" | cut -d' ' -f1)
  fi
  printf 'address %s\n' "$ADDRESS"
  printf 'lan %s\n' "${lans[@]}"
  if [[ -f $DIRECTORY/release.sha256 ]]; then printf 'release %s\n' "$(<"$DIRECTORY/release.sha256")"; fi
}

unpack_release() {
  rm -rf "$DIRECTORY/release.new"
  mkdir -p "$DIRECTORY/release.new"
  # Do not keep the owners: on the host their ids may belong to other users, and root runs these files.
  tar --no-same-owner -xzf - -C "$DIRECTORY/release.new"
}

generate_password() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }

# A secret must be readable by any user of its container; on the host only root can enter its folder.
write_secret() {
  local file=$DIRECTORY/secrets/$1
  shift
  (umask 077 && "$@" >"$file.new")
  chmod 0444 "$file.new"
  mv "$file.new" "$file"
}

print_administrator_url() {
  printf 'NODE_REGISTRY_ADMINISTRATOR_URL=postgresql://postgres:%s@db/postgres\n' \
    "$(<"$DIRECTORY/secrets/postgres_password")"
}

make_secrets() {
  local name
  if [[ ! -s $DIRECTORY/secrets/postgres_password ]] &&
    docker volume inspect node-registry_db >/dev/null 2>&1; then
    fail "the database exists, but $DIRECTORY/secrets/postgres_password does not: restore the file"
  fi
  if [[ $DRY_RUN == no ]]; then
    mkdir -p "$DIRECTORY/secrets"
    chmod 0700 "$DIRECTORY/secrets"
  fi
  for name in postgres_password grafana_password administrator.env; do
    if [[ -s $DIRECTORY/secrets/$name ]]; then
      log_step "kept" "secret $name"
    elif [[ $name == administrator.env ]]; then
      run_step "made" "secret $name" write_secret "$name" print_administrator_url
    else
      run_step "made" "secret $name" write_secret "$name" generate_password
    fi
  done
}

set_address() {
  local setting="NODE_REGISTRY_ADDRESS=$ADDRESS"
  if [[ -f $DIRECTORY/compose.env && $(<"$DIRECTORY/compose.env") == "$setting" ]]; then
    log_step "kept" "address $ADDRESS:$PORT"
  else
    CHANGED=yes
    run_step "set" "address $ADDRESS:$PORT" write_file "$setting" "$DIRECTORY/compose.env"
  fi
}

write_file() { printf '%s\n' "$1" >"$2.new" && mv "$2.new" "$2"; }

install_release() {
  rm -rf "$DIRECTORY/release.old"
  if [[ -d $DIRECTORY/release ]]; then mv "$DIRECTORY/release" "$DIRECTORY/release.old"; fi
  mv "$DIRECTORY/release.new" "$DIRECTORY/release"
  ln -s ../../secrets "$DIRECTORY/release/deploy/secrets"
  rm -rf "$DIRECTORY/release.old"
}

build_images() {
  if [[ -f $DIRECTORY/release.sha256 && $(<"$DIRECTORY/release.sha256") == "$RELEASE" ]]; then
    log_step "kept" "release ${RELEASE:0:12}"
  else
    CHANGED=yes
    if [[ $DRY_RUN == no ]]; then install_release; fi
    run_step "built" "release ${RELEASE:0:12}" quietly compose build --quiet --pull
  fi
  if [[ $CHANGED == yes ]] || ! are_healthy; then
    CHANGED=yes
    # The networks must exist before the firewall can allow them.
    run_step "made" "containers and networks" quietly compose up --no-start --remove-orphans
  fi
}

start_services() {
  if [[ $CHANGED == no ]]; then
    log_step "kept" "${SERVICES[*]} running"
    return
  fi
  run_step "started" "${SERVICES[*]}" quietly compose up --detach --remove-orphans
  [[ $DRY_RUN == no ]] || return 0
  if [[ ! -f $DIRECTORY/release.sha256 || $(<"$DIRECTORY/release.sha256") != "$RELEASE" ]]; then
    # Their configuration files were replaced.
    quietly compose restart prometheus grafana
    write_file "$RELEASE" "$DIRECTORY/release.sha256"
  fi
}

are_healthy() {
  local containers states
  readarray -t containers < <(compose ps --quiet "${SERVICES[@]}")
  ((${#containers[@]} == ${#SERVICES[@]})) || return 1
  states=$(docker inspect --format '{{.State.Health.Status}}' "${containers[@]}" | sort -u)
  [[ $states == healthy ]]
}

add_firewall_rule() {
  local rule=$1
  shift
  if [[ $'\n'$(ufw show added)$'\n' == *$'\n'"ufw $rule"$'\n'* ]]; then
    log_step "kept" "ufw $rule"
  else
    run_step "added" "ufw $rule" quietly ufw "$@"
  fi
}

list_container_networks() {
  docker network ls --quiet | xargs docker network inspect \
    --format '{{range .IPAM.Config}}{{println .Subnet}}{{end}}' | grep -E '^[0-9.]+/' | sort -u
}

# A port that docker publishes bypasses ufw's own rules; only docker's chain DOCKER-USER filters it.
print_docker_rules() {
  local network match="-A DOCKER-USER -p tcp -m conntrack --ctorigdstport $PORT --ctdir ORIGINAL"
  printf '%s\n' "# BEGIN node-registry" "*filter" ":DOCKER-USER - [0:0]"
  for network in "$@"; do printf '%s\n' "$match -s $network -j RETURN"; done
  printf '%s\n' "$match -j DROP" "COMMIT" "# END node-registry"
}

write_docker_rules() {
  printf '%s\n' "$2" "$1" >"$UFW_AFTER_RULES.new"
  chmod 0640 "$UFW_AFTER_RULES.new"
  mv "$UFW_AFTER_RULES.new" "$UFW_AFTER_RULES"
}

is_firewall_active() { [[ $(ufw status) == *"Status: active"* ]]; }

set_firewall() {
  local network networks lans rules foreign_rules own_rules ssh_port
  read -ra lans <<<"$LANS"
  readarray -t networks < <({ printf '%s\n' "${lans[@]}" && list_container_networks; } | grep . | sort -u)
  if ! is_firewall_active; then
    ssh_port=$(cut -d' ' -f4 <<<"${SSH_CONNECTION:-0 0 0 22}")
    add_firewall_rule "allow $ssh_port/tcp" allow "$ssh_port/tcp" # otherwise enabling ufw would lock ssh out
  fi
  for network in "${networks[@]}"; do
    add_firewall_rule "allow from $network to any port $PORT proto tcp" \
      prepend allow proto tcp from "$network" to any port "$PORT"
  done
  add_firewall_rule "deny $PORT/tcp" deny "$PORT/tcp"
  rules=$(print_docker_rules "${networks[@]}")
  foreign_rules=$(sed '/^# BEGIN node-registry$/,/^# END node-registry$/d' "$UFW_AFTER_RULES" 2>/dev/null || true)
  own_rules=$(sed -n '/^# BEGIN node-registry$/,/^# END node-registry$/p' "$UFW_AFTER_RULES" 2>/dev/null || true)
  if [[ $foreign_rules == *DOCKER-USER* ]]; then
    log_step "left" "$UFW_AFTER_RULES: it has other rules for DOCKER-USER. Add these to them:"
    grep '^-A' <<<"$rules"
  elif [[ $own_rules == "$rules" ]]; then
    log_step "kept" "rules for published ports"
  else
    run_step "set" "rules for published ports" write_docker_rules "$rules" "$foreign_rules"
    if [[ $DRY_RUN == no ]] && is_firewall_active; then quietly ufw reload; fi
  fi
  if is_firewall_active; then
    log_step "kept" "ufw enabled"
  else
    run_step "enabled" "ufw" quietly ufw --force enable
  fi
}

verify_services() {
  local tries
  [[ $DRY_RUN == no ]] || return 0
  for ((tries = 0; tries < 100; tries++)); do
    if are_healthy; then break; fi
    sleep 3
  done
  are_healthy || fail "some of ${SERVICES[*]} are not healthy: see docker compose --project-name node-registry logs"
  [[ $(compose port registry "$PORT") == "$ADDRESS:$PORT" ]] || fail "the registry is not published on $ADDRESS"
  is_firewall_active || fail "ufw is not active"
  log_step "verified" "${SERVICES[*]} are healthy, the registry on $ADDRESS:$PORT"
}

apply_release() {
  CHANGED=no
  make_secrets
  set_address
  build_images
  set_firewall
  start_services
  verify_services
}

# run_on_host FUNCTION: runs it on the host as root, with its variables and this standard input.
run_on_host() {
  local script
  script="set -euo pipefail
$(printf '%s=%q\n' PORT "$PORT" DRY_RUN "$DRY_RUN" DIRECTORY "$DIRECTORY" ADDRESS "$ADDRESS" LANS "${LANS[*]-}" RELEASE "$RELEASE")
SERVICES=(${SERVICES[*]})
UFW_AFTER_RULES=\${UFW_AFTER_RULES:-/etc/ufw/after.rules}
$(declare -f)
$1"
  # The user's login shell on the host is unknown, so use quotes that every shell reads.
  # shellcheck disable=SC2001 # bash on macOS reads the quotes in ${script//…} differently
  script="'$(sed "s/'/'\\\\''/g" <<<"$script")'"
  "${SSH[@]}" -o BatchMode=yes -o ConnectTimeout=10 "$HOST" "
    if [ \"\$(id -u)\" = 0 ]; then exec bash -c $script; fi
    exec sudo -n env SSH_CONNECTION=\"\$SSH_CONNECTION\" bash -c $script"
}

hash_release() {
  local sum=(sha256sum)
  command -v sha256sum >/dev/null || sum=(shasum -a 256)
  find "${SHIPPED[@]}" -type f ! -path '*/__pycache__/*' ! -path '*/secrets/*' -print0 |
    LC_ALL=C sort -z | xargs -0 "${sum[@]}" | "${sum[@]}" | cut -d' ' -f1
}

main() {
  HOST='' DRY_RUN=no ADDRESS='' LANS=() DIRECTORY=/opt/node-registry-compose
  while (($#)); do
    case $1 in
    --dry-run) DRY_RUN=yes ;;
    --address | --lan | --directory)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
      --address) ADDRESS=$2 ;;
      --lan) LANS+=("$2") ;;
      --directory) DIRECTORY=$2 ;;
      esac
      shift
      ;;
    -h | --help) usage && exit ;;
    -*) fail "unknown option $1; see --help" ;;
    *)
      [[ -z $HOST ]] || fail "more than one host given"
      HOST=$1
      ;;
    esac
    shift
  done
  [[ -n $HOST ]] || { usage >&2 && exit 2; }
  [[ $DIRECTORY =~ ^/[A-Za-z0-9._/-]+$ ]] || fail "--directory: $DIRECTORY is not a plain absolute path"
  [[ $ADDRESS =~ ^[0-9.]*$ ]] || fail "--address: $ADDRESS is not an IPv4 address"
  local lan facts installed_release
  for lan in ${LANS[@]+"${LANS[@]}"}; do
    [[ $lan =~ ^[0-9.]+/[0-9]+$ ]] || fail "--lan: $lan is not a network such as 10.1.0.0/16"
  done
  read -ra SSH <<<"${DEPLOY_SSH:-ssh}"
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  RELEASE=$(hash_release)

  facts=$(run_on_host check_host) || fail "$HOST cannot be used"
  ADDRESS=$(awk '$1 == "address" { print $2 }' <<<"$facts")
  installed_release=$(awk '$1 == "release" { print $2 }' <<<"$facts")
  LANS=()
  while read -r lan; do LANS+=("$lan"); done < <(awk '$1 == "lan" && $2 { print $2 }' <<<"$facts")
  log_step "reached" "$HOST"
  if [[ $installed_release != "$RELEASE" && $DRY_RUN == no ]]; then
    # bsdtar on macOS would otherwise add files of its own.
    COPYFILE_DISABLE=1 tar -czf - --exclude __pycache__ --exclude secrets "${SHIPPED[@]}" |
      run_on_host unpack_release
    log_step "sent" "release ${RELEASE:0:12}"
  fi
  run_on_host apply_release
  if [[ $DRY_RUN == no ]]; then
    cat <<END
The command that creates the first API key: ssh $HOST docker compose --project-name node-registry exec registry node-registry token create --role admin --name NAME
END
  fi
}

main "$@"
