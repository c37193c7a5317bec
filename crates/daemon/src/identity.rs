//! Identity documents: what makes a node itself, sealed to the key that it made for this boot.

use engine::IdentityGrant;
use wire::identity::{Capable, Document, IdentityError, Token, seal};

use crate::hub::now;
use crate::keys::{Keys, random};

/// Makes and seals documents.
pub struct Identities {
    /// What identities are derived from.
    pub keys: Keys,
}

impl Identities {
    /// The sealed document that the engine granted, with those files of the node's image that have
    /// capabilities.
    pub fn seal(
        &self,
        grant: &IdentityGrant,
        capable: &[Capable],
    ) -> Result<Vec<u8>, IdentityError> {
        let token: Token = grant.token;
        let document = Document {
            capabilities: capable.to_vec(),
            ..self.document(grant)
        };
        seal(&grant.request, &token, &random(), &document)
    }

    fn document(&self, grant: &IdentityGrant) -> Document {
        let key = self.keys.host_key(grant.mac, &grant.hostname);
        Document {
            hostname: grant.hostname.clone(),
            machine_id: self.keys.machine_id(grant.mac),
            authorized_keys: grant.authorized_keys.clone(),
            ssh_host_key: Some(key.private),
            ssh_host_pub: Some(key.public),
            console_login: grant.console_login,
            unix_time_ms: now().0,
            random_seed: random(),
            hosts: grant.hosts.to_vec(),
            files: grant.files.clone(),
            control_key: grant.control_key,
            capabilities: Vec::new(),
        }
    }
}
