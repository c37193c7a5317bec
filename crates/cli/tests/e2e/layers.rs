//! A driver that DKMS builds for an image's kernel, as a layer: docs/images.md's guide, step by step.

use lab::Tool;

use crate::firmware;
use crate::harness::{Site, guest, impossible, log_in, text};

/// What a vendor's package would be: sources under /usr/src, which DKMS builds for the image's
/// kernel.
const SCRIPT: &str = r#"#!/bin/sh
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --yes --no-install-recommends dkms gcc libc6-dev make "linux-headers-$(uname -r)" > /dev/null
mkdir /usr/src/slatetest-1.0
cd /usr/src/slatetest-1.0
cat > dkms.conf << 'END'
PACKAGE_NAME="slatetest"
PACKAGE_VERSION="1.0"
BUILT_MODULE_NAME[0]="slatetest"
DEST_MODULE_LOCATION[0]="/updates/dkms"
AUTOINSTALL="yes"
END
echo 'obj-m := slatetest.o' > Makefile
cat > slatetest.c << 'END'
#include <linux/init.h>
#include <linux/module.h>
static int __init slatetest_init(void) { pr_info("slatetest: loaded\n"); return 0; }
static void __exit slatetest_exit(void) { }
module_init(slatetest_init);
module_exit(slatetest_exit);
MODULE_LICENSE("GPL");
END
dkms install slatetest/1.0
apt-get clean
rm -rf /var/lib/apt/lists/*
"#;

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_driver_that_dkms_built_in_a_layer_is_loaded_on_a_node() {
    if impossible(&[Tool::Qemu, Tool::Firmware, Tool::Iproute, Tool::Mmdebstrap]) {
        return;
    }
    let mut site = Site::new("debian12", &firmware::KERNEL_ARGS);
    site.give_own_store();
    let script = site.path("driver.sh");
    std::fs::write(&script, SCRIPT).expect("a script");
    let script = script.to_str().expect("a path in UTF-8");
    site.slate(&[
        "image", "layer", "driver", "--on", "debian12", "--script", script,
    ]);
    // The base has a new version with the same kernel.
    site.update("debian12", "echo second > /etc/second");
    site.slate(&["image", "compose", "driver"]);
    site.slate(&["image", "tag", "driver:next", "driver"]);
    let kernel = |image: &str| {
        let shown = site.slate_json(&["image", "show", image, "--json"]);
        text(&shown["kernel"], "version")
    };
    assert_eq!(kernel("driver"), kernel("debian12"));
    let mac = lab::MacAddress::nth(1).to_string();
    site.slate(&["node", "set", &mac, "--name", "node1", "--image", "driver"]);
    let machine = firmware::power_on(&site, 1, false);
    site.wait_up(machine.mac(), 1);
    let console = machine.console();
    log_in(console);
    assert_eq!(guest(console, "uname -r"), kernel("driver"));
    assert_eq!(guest(console, "cat /etc/second"), "second");
    guest(console, "modprobe slatetest");
    let loaded = guest(console, "dmesg | grep -c 'slatetest: loaded'");
    assert_eq!(loaded, "1");
}
