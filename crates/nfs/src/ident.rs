//! Everything that clients keep and hand back later: file handles, client, session and state ids.
//!
//! Each describes itself and ends in a MAC under the server's key, so that a restarted server needs
//! no memory of having issued it. The MACs keep garbage and accidents out; they guard no secret,
//! since the trees are readable to everyone who can connect.

use std::net::IpAddr;

use siphasher::sip::SipHasher24;

/// Bytes of a file handle: version, id of the tree, inode number, MAC.
pub(crate) const HANDLE_LEN: usize = 29;
const HANDLE_VERSION: u8 = 1;

/// A session id as the protocol carries it.
pub(crate) type SessionId = [u8; 16];

/// The `other` field of a state id.
pub(crate) type StateOther = [u8; 12];

/// Makes and checks sealed ids.
#[derive(Clone)]
pub(crate) struct Keys {
    handles: SipHasher24,
    states: SipHasher24,
}

/// What a session id says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionParts {
    pub(crate) client: u64,
    /// The client asked for a backchannel.
    pub(crate) back: bool,
}

/// What a state id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateKind {
    Open,
    Lock,
    Delegation,
}

impl Keys {
    pub(crate) fn new(key: &[u8; 32]) -> Keys {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&key[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        Keys {
            handles: SipHasher24::new_with_keys(word(0), word(8)),
            states: SipHasher24::new_with_keys(word(16), word(24)),
        }
    }

    /// The handle of an inode of the tree `id`.
    #[inline]
    pub(crate) fn handle(&self, id: &[u8; 16], ino: u32) -> [u8; HANDLE_LEN] {
        let mut handle = [0; HANDLE_LEN];
        handle[0] = HANDLE_VERSION;
        handle[1..17].copy_from_slice(id);
        handle[17..21].copy_from_slice(&ino.to_be_bytes());
        let mac = self.handles.hash(&handle[..21]);
        handle[21..].copy_from_slice(&mac.to_be_bytes());
        handle
    }

    /// The tree and inode of a handle; `None` if this key did not make it.
    #[inline]
    pub(crate) fn open_handle(&self, handle: &[u8]) -> Option<([u8; 16], u32)> {
        let handle: &[u8; HANDLE_LEN] = handle.try_into().ok()?;
        let mac = self.handles.hash(&handle[..21]).to_be_bytes();
        if handle[0] != HANDLE_VERSION || handle[21..] != mac {
            return None;
        }
        let mut id = [0; 16];
        id.copy_from_slice(&handle[1..17]);
        Some((
            id,
            u32::from_be_bytes([handle[17], handle[18], handle[19], handle[20]]),
        ))
    }

    /// A name for this server that is the same after a restart.
    pub(crate) fn server_name(&self) -> [u8; 8] {
        self.states.hash(b"server").to_be_bytes()
    }

    /// The id of the client that calls itself `owner` at `address` since `verifier`: a hash of 40
    /// bits and a MAC of 24 bits.
    pub(crate) fn client_id(&self, owner: &[u8], address: IpAddr, verifier: [u8; 8]) -> u64 {
        let mut input = Vec::with_capacity(owner.len() + 26);
        input.extend_from_slice(b"c");
        match address {
            IpAddr::V4(address) => input.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => input.extend_from_slice(&address.octets()),
        }
        input.push(b'/');
        input.extend_from_slice(&verifier);
        input.extend_from_slice(owner);
        let hash = self.states.hash(&input) >> 24;
        hash << 24 | self.client_mac(hash)
    }

    fn client_mac(&self, hash: u64) -> u64 {
        self.states.hash(&hash.to_be_bytes()) >> 40
    }

    /// Whether this key made the client id.
    pub(crate) fn is_client_id(&self, id: u64) -> bool {
        self.client_mac(id >> 24) == id & 0xff_ffff
    }

    pub(crate) fn session_id(&self, parts: SessionParts, nonce: u32) -> SessionId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&parts.client.to_be_bytes());
        id[8..12].copy_from_slice(&nonce.to_be_bytes());
        id[8] = parts.back.into();
        let mac = self.session_mac(&id);
        id[12..].copy_from_slice(&mac);
        id
    }

    pub(crate) fn open_session_id(&self, id: &SessionId) -> Option<SessionParts> {
        if id[12..] != self.session_mac(id) {
            return None;
        }
        let mut client = [0; 8];
        client.copy_from_slice(&id[..8]);
        Some(SessionParts {
            client: u64::from_be_bytes(client),
            back: id[8] != 0,
        })
    }

    fn session_mac(&self, id: &SessionId) -> [u8; 4] {
        low_word(self.states.hash(&id[..12]))
    }

    /// The id of `client`'s state of a kind on the inode `ino`. `nonce`, of which 24 bits count,
    /// makes it one of a kind.
    pub(crate) fn state_id(
        &self,
        client: u64,
        kind: StateKind,
        ino: u32,
        nonce: u32,
    ) -> StateOther {
        let mut other = [0; 12];
        other[..4].copy_from_slice(&nonce.to_be_bytes());
        other[0] = match kind {
            StateKind::Open => b'o',
            StateKind::Lock => b'l',
            StateKind::Delegation => b'd',
        };
        other[4..8].copy_from_slice(&ino.to_be_bytes());
        let mac = self.state_mac(client, &other);
        other[8..].copy_from_slice(&mac);
        other
    }

    /// Kind and inode of a state id; `None` if this key did not make it for `client`.
    pub(crate) fn open_state_id(
        &self,
        client: u64,
        other: &StateOther,
    ) -> Option<(StateKind, u32)> {
        if other[8..] != self.state_mac(client, other) {
            return None;
        }
        let kind = match other[0] {
            b'o' => StateKind::Open,
            b'l' => StateKind::Lock,
            b'd' => StateKind::Delegation,
            _ => return None,
        };
        Some((
            kind,
            u32::from_be_bytes([other[4], other[5], other[6], other[7]]),
        ))
    }

    fn state_mac(&self, client: u64, other: &StateOther) -> [u8; 4] {
        let mut input = [0; 16];
        input[..8].copy_from_slice(&client.to_be_bytes());
        input[8..].copy_from_slice(&other[..8]);
        low_word(self.states.hash(&input))
    }

    /// A number of 24 bits for the tree `id`, the same after a restart.
    pub(crate) fn tree_nonce(&self, id: &[u8; 16]) -> u32 {
        u32::from_be_bytes(low_word(self.states.hash(id))) & 0xff_ffff
    }
}

fn low_word(hash: u64) -> [u8; 4] {
    let [.., a, b, c, d] = hash.to_be_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new(&std::array::from_fn(|index| index as u8))
    }

    #[test]
    fn handles_open_under_their_key_only() {
        let handle = keys().handle(&[9; 16], 0xdead_beef);
        assert_eq!(keys().open_handle(&handle), Some(([9; 16], 0xdead_beef)));
        assert_eq!(Keys::new(&[1; 32]).open_handle(&handle), None);
        for at in 0..HANDLE_LEN {
            let mut broken = handle;
            broken[at] ^= 1;
            assert_eq!(keys().open_handle(&broken), None, "byte {at}");
        }
        assert_eq!(keys().open_handle(&handle[..28]), None);
    }

    #[test]
    fn ids_say_what_they_are() {
        let (here, there) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let client = keys().client_id(b"localhost", here, [1; 8]);
        assert!(keys().is_client_id(client) && !keys().is_client_id(client ^ 1));
        assert_ne!(client, keys().client_id(b"localhost", there, [1; 8]));
        let parts = SessionParts { client, back: true };
        let session = keys().session_id(parts, 77);
        assert_eq!(keys().open_session_id(&session), Some(parts));
        let state = keys().state_id(client, StateKind::Lock, 5, 3);
        assert_eq!(
            keys().open_state_id(client, &state),
            Some((StateKind::Lock, 5))
        );
        assert_eq!(keys().open_state_id(client ^ 1, &state), None);
    }
}
